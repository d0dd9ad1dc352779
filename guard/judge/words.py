"""The words of a text as a judge compares them: folded letters, whole numbers, characters where a script has no blanks.

What folding takes away is taken away from both sides, and never all of a text: "+" stays "+", "Vitamin A" keeps its A.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache

_QUOTES = str.maketrans(
    {**dict.fromkeys("\u2018\u2019\u00b4`\u02bb\u02bc", "'"), **dict.fromkeys("\u2013\u2014", "-"), "\u2212": "-"}
)
_LETTERS = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i", "ħ": "h", "ŋ": "ng"}
)
_INVISIBLE = dict.fromkeys([0xAD, 0xFEFF, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0xFE00, 0xFE10)])
_MARKS = "".join(chr(c) for c in range(0x300, 0x10000) if unicodedata.category(chr(c))[0] == "M")

# -- numbers: separators go, a decimal point stays ---------------------------------------------------------------------

_RAISED = re.compile(r"(?<=\d)(?=[\u00b2\u00b3\u00b9\u2070-\u2079\u00bc-\u00be\u2150-\u215e])")  # 10², 1½
_BLANK_GROUPS = re.compile(r"(?<=\d)[\u00a0\u2007\u2009\u202f'](?=\d{3}(?!\d))")
_COMMA_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d|,\d)")
# With a dot or a plain blank only where no decimal and no two numbers can be meant: 1.234.567, 25 000.
_OTHER_GROUPS = re.compile(
    r"(?<![\d.,])(?<!\d )\d{1,3}(?:(?:\.\d{3}){2,}|(?:\.000)+|(?: \d{3}){2,}|(?: 000)+)(?!\d|[., ]\d)"
)
_DECIMAL_COMMA = re.compile(r"(?<![\d.,])(\d+),(\d{1,2})(?!\d|[.,]\d)")
_PERCENT = re.compile(r"(?<=\d)\s*(?:%|per ?cent\b)", re.IGNORECASE)
_UNITS = "km|cm|mm|m|kg|mg|g|lbs?|ft|mph|kmh|kph|f|c|[kmg]?hz"

_WHOLE = "[\u30a1-\u30fa\u30fc-\u30ff]+|[\uac00-\ud7a3]+"  # runs of Katakana and of Hangul
_SINGLE = "[\u3041-\u309f\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # Hiragana and Han
_CLUSTER = f"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff][{_MARKS}]*"  # Thai, Lao, Burmese, Khmer
_OTHERS = (
    f"(?:(?![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff])[^\\W_]"
    f"|[{_MARKS}])"
)
_TOKEN = re.compile(
    rf"(?<![^\W_])(?:(?<![^\s(\[{{\"'*:=~])-)?(?:(?<!\d\.)\d+\.\d+(?!\.?\d)|\.\d+|\d+)"
    rf"(?=(?:{_UNITS})?(?![^\W_]))"
    rf"|(?<![^\W_])(?:AB?|B|O)-(?![^\W_])|[^\W\d_]+(?:\+\+?|\#)(?![^\W_])"  # a blood group; C++, A+, C#
    rf"|{_WHOLE}|{_SINGLE}|{_CLUSTER}|{_OTHERS}+(?:'{_OTHERS}+)*",
    re.IGNORECASE,
)
_ENDS, _AROUND = ".,;:!?…。、", "\"'()[]{}*「」"

# -- what clings to a word ---------------------------------------------------------------------------------------------

_ELIDED = re.compile(
    r"((?:l|d|c|j|m|n|s|t|qu|jusqu|lorsqu|puisqu|un|dell|all|nell|sull|dall|quest)')(?=[^\W\d_]{2})", re.IGNORECASE
)
_SHORT = re.compile(r"(it|that|he|she|what|who|there|here|where)('s)", re.IGNORECASE)
_KEPT = re.compile(r".*(?:n't|'ll|'re|'ve|'d|'m)", re.IGNORECASE)  # without the apostrophe they are other words
_TURKISH = re.compile(r"(.{2,})('(?:[dt][ıiuü]r|[dt][ae]n?|n?[ıiuü]n|[yn]?[ıiuüae]|[dt][ae]d[ıiuü]r))", re.IGNORECASE)
_KOREAN = re.compile(
    "(.+?)(이었습니다|였습니다|입니다|이에요|예요|이다|이었다|였다|이며|에서|에|으로|로|은|는|이|가|을|를|의|와|과|도)"
)


def listed(words: str) -> frozenset[str]:
    """The words of a list with blanks between."""
    return frozenset(words.split())


def _numbered(words: str, values: range) -> dict[str, int]:
    return dict(zip(words.split(), values, strict=True))


ARTICLES = listed("a an the")
# Words that say nothing by themselves: no answer is recognised by one, and they do not melt into their neighbours.
STOP = ARTICLES | listed(
    "i me my we us our you your he him his she her it its they them their this that these those who whom whose which "
    "what when where why how is am are was were be been being do does did has have had will would can could may might "
    "must shall should in on at of to by for from with as into than then so if or and but not no nor also located "
    "there here up out about de la le el al du en et es un il da do se te ta den der die das ein una les los"
)

_SMALL = _numbered(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
    range(20),
)
_TENS = _numbered("twenty thirty forty fifty sixty seventy eighty ninety", range(20, 100, 10))
_SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = {"first": 1, "second": 2, "third": 3, "fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12} | {
    (name.removesuffix("y") + "ieth" if name.endswith("y") else name + "th"): value
    for name, value in {**_SMALL, **_TENS, **_SCALES}.items()
    if value not in (0, 1, 2, 3, 5, 8, 9, 12)
}


@dataclass(frozen=True, slots=True)
class Word:
    """text: folded. raw: as it stands. gap: what stands between the word before and this one.

    article: it is one, and no letter or name: a word follows it, with nothing but a blank between.
    """

    text: str
    raw: str
    gap: str
    article: bool = False


def fold(text: str) -> str:
    """Small letters without accents. Marks that make another letter, as in Japanese or Hindi, stay."""
    out: list[str] = []
    base = ""
    for char in unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold()):
        if not unicodedata.combining(char):
            base = char
        elif _strips(base, char):
            continue
        out.append(char)
    return unicodedata.normalize("NFC", "".join(out).translate(_LETTERS))


def _strips(base: str, mark: str) -> bool:
    """Latin, Greek, Cyrillic, Hebrew and Arabic can be read without their marks; but й is not и."""
    if "\u0400" <= base < "\u0530" and mark == "\u0306":
        return False
    return base < "\u0700" or "\u1e00" <= base < "\u2000"


@lru_cache(maxsize=4096)
def read(text: str) -> tuple[tuple[Word, ...], str]:
    """The words of a text, and what stands behind the last one."""
    plain = _plain(text)
    found: list[Word] = []
    end = 0
    for match in _TOKEN.finditer(plain):
        gap, end = plain[end : match.start()], match.end()
        for part in _parts(match[0]):
            found.append(Word(_number(part) or _letters(part), part, gap))
            gap = ""
    tail = plain[end:]
    return tuple(_with_articles(_with_numbers(found), tail)), tail


def symbols(text: str) -> tuple[str, ...]:
    """What stands between blanks, without punctuation around it; for answers such as "+" that have no words."""
    parts = fold(text.translate(_QUOTES)).split()
    ended = (part.rstrip(_ENDS) or part for part in parts)
    return tuple(part.strip(_AROUND) or part for part in ended)


def normalise(text: str) -> str:
    """Folded words with one blank between, no articles; the symbols when it has no words."""
    words, _ = read(text)
    return " ".join(word.text for word in words if not word.article) or " ".join(symbols(text))


def _plain(text: str) -> str:
    text = _RAISED.sub(" ", text.translate(_QUOTES).translate(_INVISIBLE))
    text = unicodedata.normalize("NFKC", _BLANK_GROUPS.sub("", text))
    text = _COMMA_GROUPS.sub(lambda match: match[0].replace(",", ""), text)
    text = _OTHER_GROUPS.sub(lambda match: match[0].replace(".", "").replace(" ", ""), text)
    return _PERCENT.sub("", _DECIMAL_COMMA.sub(r"\1.\2", text))


def _parts(token: str) -> list[str]:
    """A token without what clings to it: l'Italie, 서울입니다, it's."""
    if "\uac00" <= token[0] <= "\ud7a3":
        match = _KOREAN.fullmatch(token)
        return [match[1], match[2]] if match else [token]
    if "'" not in token:
        return [token]
    if match := _SHORT.fullmatch(token):
        return [match[1], "is"]
    if match := _ELIDED.match(token):
        return [match[1], *_parts(token[match.end() :])]
    if (match := _TURKISH.fullmatch(token)) and not _KEPT.fullmatch(token):
        return [match[1], match[2]]
    return [token]


def _letters(token: str) -> str:
    return fold(token if _KEPT.fullmatch(token) else token.replace("'", ""))


def _number(token: str) -> str | None:
    """3.50 as 3.5, .5 as 0.5; digits alone as they stand (007). None for what is no number."""
    digits = token.removeprefix("-")
    if not digits.replace(".", "", 1).isdecimal():
        return None
    # isdecimal holds for the digits of every script, which int() reads
    plain = "".join("." if char == "." else str(int(char)) for char in digits)
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".") if not plain.startswith(".") else "0" + plain
    return token[: len(token) - len(digits)] + plain


def _with_numbers(words: Sequence[Word]) -> list[Word]:
    """Number words as digits (two hundred and twelve, 1.5 million, nineteen eighty-four, twenty-first), minus five."""
    out: list[Word] = []
    i = 0
    while i < len(words):
        end, text = _spelled(words, i)
        if end > i:
            if out and out[-1].text in ("minus", "negative"):
                first, text = out.pop(), f"-{text}"
            else:
                first = words[i]
            raw = " ".join(word.raw for word in words[i:end])
            out.append(replace(first, text=text, raw=raw))
            i = end
        else:
            out.append(words[i])
            i += 1
    return out


def _spelled(words: Sequence[Word], start: int) -> tuple[int, str]:
    """Where the number that starts here ends, and its digits; ``start`` itself when none does."""
    groups: list[Decimal] = []  # each below a scale of a thousand or more, those scaled first
    total, current, i, joined = Decimal(0), None, start, ""
    while i < len(words):
        text = words[i].text
        if i > start and words[i].gap.strip() not in ("", "-"):
            break
        if text == "and" and current is not None and i + 1 < len(words) and words[i - 1].text in _SCALES:
            if words[i + 1].text in _SMALL or words[i + 1].text in _TENS:
                i += 1
                continue
            break
        value = _SMALL.get(text, _TENS.get(text))
        if value is not None:
            if text == "one" and not _counts(words, i):
                break
            if current is None:
                current = Decimal(value)
            elif _takes(current, value) or (current % 100 == 0 and (current or groups)):
                current += value
            elif 10 <= current < 100 and value >= 10 and not groups and not joined:
                joined, current = str(current), Decimal(value)  # nineteen eighty(-four)
            else:
                break
        elif text in _SCALES and not joined:
            scale = _SCALES[text]
            if scale == 100:
                current = (current if current is not None else Decimal(1)) * scale
            else:
                groups.append((current if current is not None else Decimal(1)) * scale)
                total, current = sum(groups, Decimal(0)), Decimal(0)
        elif text in _ORDINALS:
            value = _ORDINALS[text]
            if current is None:
                return i + 1, _ordinal(value)
            if _takes(current, value):
                return i + 1, _ordinal(int(total + current) + value)
            break
        elif i == start and _digits(text) and i + 1 < len(words) and words[i + 1].text in _SCALES:
            current = Decimal(text)
        else:
            break
        i += 1
    if current is None:
        return start, ""
    value_ = total + current
    if joined:
        return i, f"{joined}{int(value_):02d}"
    return i, str(int(value_)) if value_ == int(value_) else str(value_.normalize())


def _takes(number: Decimal, value: int) -> bool:
    """Whether a small number may follow: twenty-one."""
    return value < 10 and number % 100 >= 20 and number % 10 == 0


def _counts(words: Sequence[Word], i: int) -> bool:
    """Whether "one" counts something here; in "one of the", "no one" it does not."""
    after = words[i + 1].text if i + 1 < len(words) else ""
    before = words[i - 1].text if i else ""
    return after != "of" and before not in ("no", "any", "every", "some", "the", "this", "that", "which")


def _digits(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _ordinal(value: int) -> str:
    suffix = "th" if value % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(value % 10, "th")
    return f"{value}{suffix}"


def _with_articles(words: Sequence[Word], tail: str) -> list[Word]:
    out = []
    for i, word in enumerate(words):
        follows = words[i + 1] if i + 1 < len(words) else None
        is_article = word.text in ARTICLES and follows is not None and not follows.gap.strip()
        if is_article and word.raw == "A" and follows is not None:
            starts = i == 0 or any(mark in word.gap for mark in ".!?\n:\"'(")
            is_article = starts and follows.text not in ("is", "was", "and", "or")
        out.append(replace(word, article=is_article))
    return out
