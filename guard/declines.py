"""Whether an answer does nothing but decline: it says that it does not know, or cannot say, and nothing else.

Such an answer states nothing, so its risk ends nothing, where ``Policy.declines_pass``. What may pass whatever its risk
must not have room for an answer: sentences are those of a finite list, and any other word makes it no decline here. The
judge of answers (``guard.judge.declines``) recognises far more, and reads what follows.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from functools import cache
from itertools import product

LONGEST = 64  # tokens; the longest of these answers have fewer in any vocabulary that knows their script
_MOST = 3  # sentences

_LEADS = (
    "",
    *(
        "sorry, ",
        "i'm sorry, ",
        "i am sorry, ",
        "sorry, but ",
        "i'm sorry, but ",
        "i am sorry, but ",
        "i apologize, but ",
    ),
    *("unfortunately, ", "unfortunately ", "i'm afraid ", "i am afraid ", "honestly, ", "well, ", "as an ai, "),
)
_NOT_KNOWING = (
    "i do not know",
    "i do not know that",
    "i do not know this",
    "i do not know the answer",
    "i do not know the answer to that",
    "i do not know the answer to that question",
    "i do not know the answer to this question",
    "i do not know the answer to your question",
    "i do not remember",
    "i do not recall",
    "i do not have an answer",
    "i do not have the answer",
    "i do not have an answer to that",
    "i do not have an answer to that question",
    "i have no idea",
    "i have no answer",
    "i have no information about that",
    "i have no information on that",
    "i am not sure",
    "i am not certain",
    "i am unsure",
    "i am not sure about that",
    "i do not know about that",
    "i do not know for sure",
    "i really do not know",
    "i just do not know",
)
_NOT_SAYING = tuple(
    f"{start} {end}"
    for start, ends in (
        (
            "i do not have",
            (
                "that information",
                "this information",
                "enough information",
                "information about that",
                "information on that",
            ),
        ),
        (
            "i do not have enough information to",
            ("answer", "answer that", "answer this", "answer that question", "answer this question", "say", "tell"),
        ),
        (
            "i do not have enough information to answer",
            ("your question", "the question", "it"),
        ),
        *(
            (
                start,
                ("answer", "answer that", "answer this", "answer that question", "answer this question", "say", "tell"),
            )
            for start in ("i cannot", "i can not", "i am unable to", "i am not able to", "i could not")
        ),
        *(
            (start, ("answer your question", "say for sure", "say for certain", "help with that", "help you with that"))
            for start in ("i cannot", "i am unable to", "i am not able to")
        ),
    )
    for end in ends
)
_ASKING = tuple(
    f"{start} {end}"
    for start, end in product(
        ("please provide", "could you provide", "can you provide", "could you give me", "can you give me"),
        ("more context", "more information", "more details", "more detail"),
    )
)
_OTHERS = (
    # German, Dutch, Swedish, Danish, Norwegian, Finnish
    *(
        "ich weiß es nicht",
        "ich weiss es nicht",
        "das weiß ich nicht",
        "das weiss ich nicht",
        "ich weiß es leider nicht",
    ),
    *("das weiß ich leider nicht", "leider weiß ich das nicht", "leider weiß ich es nicht", "keine ahnung"),
    *("ich habe keine ahnung", "das kann ich nicht sagen", "das kann ich leider nicht sagen", "ich bin nicht sicher"),
    *("ich bin mir nicht sicher", "ich kann das nicht beantworten", "das kann ich nicht beantworten"),
    *("es tut mir leid, ich weiß es nicht", "es tut mir leid, aber ich weiß es nicht"),
    *("ik weet het niet", "dat weet ik niet", "geen idee", "jag vet inte", "det vet jag inte", "ingen aning"),
    *("jeg ved det ikke", "det ved jeg ikke", "jeg vet ikke", "det vet jeg ikke", "en tiedä"),
    # French, Spanish, Italian, Portuguese, Catalan, Romanian
    *("je ne sais pas", "je ne le sais pas", "je n'en sais rien", "je l'ignore", "aucune idée", "je n'ai aucune idée"),
    *("je n'en ai aucune idée", "je ne suis pas sûr", "je ne suis pas sûre", "désolé, je ne sais pas"),
    *("je suis désolé, mais je ne sais pas", "je ne peux pas répondre", "je ne peux pas répondre à cette question"),
    *("no lo sé", "no sé", "lo siento, no lo sé", "lo siento, pero no lo sé", "no tengo idea", "no tengo ni idea"),
    *("lo desconozco", "no estoy seguro", "no estoy segura", "no tengo esa información", "no puedo responder"),
    *("non lo so", "non ne ho idea", "mi dispiace, non lo so", "mi dispiace, ma non lo so", "non sono sicuro"),
    *("não sei", "eu não sei", "não faço ideia", "não tenho certeza", "desculpe, não sei", "desculpe, mas não sei"),
    *("no ho sé", "nu știu", "nu ştiu"),
    # Polish, Czech, Russian, Ukrainian, Hungarian, Greek, Turkish
    *("nie wiem", "nie mam pojęcia", "niestety nie wiem", "nevím", "to nevím", "nem tudom"),
    *("я не знаю", "не знаю", "понятия не имею", "к сожалению, я не знаю", "извините, я не знаю", "гадки не маю"),
    *("δεν ξέρω", "δεν το ξέρω", "δεν γνωρίζω", "bilmiyorum", "fikrim yok", "üzgünüm, bilmiyorum"),
    # Arabic, Hebrew, Persian, Hindi, Indonesian, Vietnamese, Thai
    *("لا أعرف", "لا أعلم", "لا أدري", "אני לא יודע", "אני לא יודעת", "אין לי מושג", "نمی‌دانم", "نمیدانم"),
    *("मुझे नहीं पता", "मुझे पता नहीं", "saya tidak tahu", "tidak tahu", "tôi không biết", "ไม่ทราบ", "ไม่รู้"),
    # Chinese, Japanese, Korean
    *(
        "我不知道",
        "不知道",
        "我不清楚",
        "不清楚",
        "抱歉,我不知道",
        "对不起,我不知道",
        "我无法回答",
        "我无法回答这个问题",
    ),
    *("抱歉,我无法回答这个问题", "我不确定", "我沒有答案", "我不確定"),
    *(
        "わかりません",
        "分かりません",
        "わからない",
        "知りません",
        "すみません、わかりません",
        "申し訳ありませんが、わかりません",
    ),
    *("모르겠습니다", "잘 모르겠습니다", "모릅니다", "죄송합니다, 모르겠습니다", "죄송하지만 잘 모르겠습니다"),
)
_SHORT = (("do not", "don't"), ("cannot", "can't"), ("could not", "couldn't"), ("i am ", "i'm "), ("don't", "dont"))
_CLOSINGS = ("sorry", "i am sorry", "i'm sorry", "i apologize", *_ASKING)

_QUOTES = str.maketrans(dict.fromkeys("\u2018\u2019\u00b4`\u02bb\u02bc", "'") | {"\uff0c": ","})
_ENDS = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\u0964\u061f\uff0e]+ ?")


def declines(text: str) -> bool:
    """Whether this whole answer does nothing but decline, in any of thirty languages; it may apologise, and ask for
    more to go by."""
    said = [one for one in _sentences(text) if one]
    cores, closings = _known()
    return (
        0 < len(said) <= _MOST
        and any(one in cores for one in said)
        and all(one in cores or one in closings for one in said)
    )


def may_decline(text: str) -> bool:
    """Whether an answer that begins with ``text`` may yet turn out to be one that declines; its last character may lack
    bytes."""
    *whole, begun = _sentences(text.removesuffix("\ufffd").removesuffix("\ufffd").removesuffix("\ufffd"))
    said = [one for one in whole if one]
    cores, closings = _known()
    if len(said) + bool(begun) > _MOST or not all(one in cores or one in closings for one in said):
        return False
    ordered = _ordered()
    place = bisect_left(ordered, begun)
    return place < len(ordered) and ordered[place].startswith(begun)


def _sentences(text: str) -> list[str]:
    """Its sentences in small letters; the last is what follows the last end of one, often empty. A long text, which no
    answer that declines has, is one sentence as it stands."""
    if len(text) > 8 * LONGEST:
        return [text]
    plain = " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES).split()).casefold()
    return [one.strip() for one in _ENDS.split(plain)]


@cache
def _known() -> tuple[frozenset[str], frozenset[str]]:
    """Sentences that decline, and those that may stand beside them, as ``_sentences`` writes them."""
    english = {f"{lead}{core}" for lead in _LEADS for core in (*_NOT_KNOWING, *_NOT_SAYING)}
    short = {form for one in english for form in _contracted(one)}
    return (
        frozenset(one for text in (*short, *_OTHERS) for one in _sentences(text)),
        frozenset(one for text in _CLOSINGS for one in _sentences(text)),
    )


def _contracted(text: str) -> set[str]:
    """A sentence as it is, and as it is said: don't, I'm, can't; each of these by itself."""
    found = {text}
    for whole, short in _SHORT:
        for one in tuple(found):
            ends = one.split(whole)
            for said in product((whole, short), repeat=len(ends) - 1):
                found.add("".join(part for pair in zip(ends, (*said, ""), strict=True) for part in pair))
    return found


@cache
def _ordered() -> list[str]:
    return sorted(frozenset().union(*_known()))
