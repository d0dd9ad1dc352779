"""Whether an answer declines: it says that it does not know, or cannot say. Two dozen languages."""

from __future__ import annotations

import re
import unicodedata

_QUOTES = str.maketrans(dict.fromkeys("\u2018\u2019\u00b4`\u02bb\u02bc", "'"))

_NOTHING = "(?:idea|clue|answer|information|info|knowledge|record|records|data|memory|details)"
_SAYING = (
    "(?:answer|provide|say|determine|find|tell|help|assist|give|verify|confirm|recall|remember|identify|know|comment"
    "|be (?:sure|certain|determined|answered))"
)
_GIVEN = "(?:provided|specified|mentioned|stated|available)"
_ENDS = (
    r"(?: to (?:me|us|anyone)| for (?:certain|sure))?"
    r"(?=\W*$|[.,;!?]| (?:who|what|when|where|which|whether|how|why|if|at|because)\b)"
)
# Words that may stand in between are few, so that "I do not like France" is no decline.
_ENGLISH = (
    r"(?:\b(?:i|we)|^|[.,;:!?] ?)(?: \w+)? ?(?:do not|don't|dont|did not|didn't) (?:\w+ )?(?:know|recall|remember)\b",
    rf"\b(?:do not|don't|dont|did not|didn't) (?:\w+ )?have (?:\w+ ){{0,3}}?(?:{_NOTHING}|access)\b",
    rf"\b(?:i|we) have (?:absolutely )?no (?:\w+ )?{_NOTHING}\b",
    rf"^(?:sorry,? )?no (?:idea|clue|answer|information)\b|\bthere (?:is|was) no (?:\w+ )?{_NOTHING}\b",
    r"\bno (?:\w+ )?information (?:is |was |has been )?(?:available|provided|given|found)\b",
    r"\bidk\b|\bdunno\b|\b(?:no one|nobody) knows\b|\b(?:hard|impossible) to (?:say|tell|know)\b",
    r"\b(?:i|we) (?:was|were|have|had|have been) (?:not|never|n't) (?:been )?taught\b|\b(?:wasn't|weren't) taught\b",
    r"\b(?:i'm|i am|we are|we're) (?:\w+ )?not (?:\w+ )?(?:sure|certain|aware|familiar|able)\b",
    r"\b(?:i'm|i am|we are|we're) (?:\w+ )?(?:unsure|uncertain|unable)\b",
    r"^(?:not (?:quite |really )?sure|unsure|unable to)\b|^unknown\W*$|^n/a\W*$",
    rf"(?:\b(?:i|we)|^|\bbut|,)(?: \w+)? ?(?:cannot|can not|can't|could not|couldn't) (?:\w+ )?{_SAYING}\b",
    rf"\b(?:is|are|was|were|remains?|currently|still) (?:\w+ )?(?:unknown|not known|unclear|not clear){_ENDS}",
    rf"\b(?:is|was|are|were|been)(?: not|n't) (?:\w+ )?{_GIVEN}\b",
    r"^not (?:provided|specified|mentioned|stated|available|known|taught)\b",
    r"\bbeyond my (?:knowledge|training)\b",
    r"\b(?:need|provide|give) (?:me )?(?:with )?more (?:context|information|details)\b",
)
_OTHERS = (
    # German, Dutch, Swedish, Danish, Norwegian, Finnish
    r"\bich weiß (?:es |das |das leider |es leider |leider )?nicht\b",
    r"\bich weiss (?:es |das |das leider |es leider |leider )?nicht\b",
    r"\bwei(?:ß|ss) (?:ich|man) (?:\w+ )?nicht\b|\bkeine ahnung\b|\bmir (?:leider )?(?:nicht bekannt|unbekannt)\b",
    r"\bich kann (?:das|es|dies) (?:leider )?nicht (?:sagen|beantworten)\b",
    r"\bkann ich (?:\w+ ){0,2}nicht (?:sagen|beantworten)\b|\bich bin (?:mir )?(?:da )?nicht sicher\b",
    r"\bich habe (?:\w+ )?keine (?:\w+ )?(?:information|ahnung|antwort)",
    r"\bweet (?:ik )?(?:het |dat )?niet\b|\bgeen idee\b|\bik ben (?:er )?niet zeker\b",
    r"\bvet (?:jag |jeg )?(?:det )?(?:inte|ikke|ej)\b|\bved (?:jeg )?(?:det )?ikke\b",
    r"\bingen an(?:ing|else)\b|\baner (?:det )?ikke\b",
    r"\ben tiedä\b|\bei (?:ole )?tietoa\b|\ben osaa sanoa\b",
    # French, Spanish, Italian, Portuguese, Catalan, Romanian
    r"\bje (?:ne )?(?:le )?sais pas\b|\b(?:j'|je l')ignore\b|\baucune idée\b|\bje ne (?:le )?connais pas\b",
    r"\bje n'en sais rien\b",
    r"\bje n'ai (?:pas|aucune) (?:\w+ )?(?:d'|la |idée|information|réponse)",
    r"\bje ne peux pas (?:\w+ )?(?:répondre|dire)\b",
    r"\bje ne suis pas (?:sûre?|certaine?)\b",
    r"\bno (?:lo )?sé\b|\bno lo se\b|^no se\W*$",
    r"\bno tengo (?:ni )?(?:la |una |esa |esta )?(?:idea|información|respuesta)\b",
    r"\blo desconozco\b|^desconozco\b|\bno estoy segur[oa]\b|\bno (?:lo )?puedo (?:responder|decir)\b",
    r"\bnon (?:lo )?so\b|\bnon (?:ne )?ho (?:\w+ )?(?:idea|informazioni)\b|\bnon (?:ne )?sono sicur[oa]\b",
    r"\bnon (?:posso|saprei) (?:rispondere|dir)",
    r"\bn[ãa]o sei\b|\bn[ãa]o (?:faço|tenho) (?:a (?:menor )?|nenhuma )?(?:ideia|informaç|certeza)",
    r"\bdesconheço\b|\bno ho sé\b",
    r"\bnu (?:știu|ştiu|stiu)\b|\bhabar n-am\b",
    # Polish, Czech, Russian, Ukrainian, Hungarian, Greek, Turkish
    r"\bnie wiem\b|\bnie mam pojęcia\b|\bnie jestem pew|\bnevím\b|\bnemám tušení\b|\bnem tudom\b",
    r"\bне знаю\b|\bпонятия не имею\b|\bне могу (?:\w+ )?(?:ответить|сказать)\b",
    r"^неизвестно\b|\bгадки не маю\b|\bмне неизвестно\b",
    r"\bδεν (?:το )?(?:ξέρω|γνωρίζω)\b|\bbilmiyorum\b|\b(?:fikrim|bilgim) yok\b",
    # Arabic, Hebrew, Persian, Hindi, Indonesian, Vietnamese, Thai
    r"لا (?:أعرف|اعرف|أعلم|اعلم|أدري|ادري)|ليس لدي|לא יודעת?|אין לי מושג|نمی\u200c?دانم",
    r"(?:नहीं|मालूम नहीं) (?:पता|जानता|जानती|मालूम)|पता नहीं|मालूम नहीं",
    r"\btidak (?:tahu|tau)\b|\bkhông (?:biết|rõ)\b|ไม่(?:ทราบ|รู้)",
    # Chinese, Japanese, Korean
    r"不知道|不清楚|不太?了解|(?:无法|無法)(?:回答|确定|確定|提供|得知)|我不(?:确定|確定)|[没沒]有答案|没有(?:相关)?信息|沒有(?:相關)?資訊",
    r"(?:わか|分か)(?:りません|らない|んない)|(?:知|し)りません|知らない|存じません|^不明",
    r"모르겠|모릅니다|몰라요?|모른다|알 수 없|알지 못",
)
_DECLINED = re.compile("|".join((*_ENGLISH, *_OTHERS)), re.IGNORECASE)
_GUESSED = re.compile(
    r"\b(?:but|however|though|although)\b(?=.*\b(?:think|guess|believe|suppose|say|probably|likely|perhaps|maybe)\b)",
    re.IGNORECASE,
)
_NO_SUCH = re.compile(
    r"\bno such\b|\b(?:does|do|did)(?: not|n't) (?:\w+ )?exist\b|\bnon-?existent\b"
    r"|\bnot (?:a |an )?(?:real|actual)\b",
    re.IGNORECASE,
)


def rest_of(answer: str) -> str | None:
    """What an answer commits itself to: all of it when it declines nothing, what follows "but" when it declines and
    guesses, None when it declines."""
    plain = _plain(answer)
    if not (match := _DECLINED.search(plain)):
        return answer
    if guess := _GUESSED.search(plain, match.end()):
        rest = plain[guess.end() :]
        return None if _DECLINED.search(rest) else rest
    return None


def denies(answer: str) -> bool:
    """Whether it says that there is no such thing: what is to be said of a thing that does not exist."""
    return _NO_SUCH.search(_plain(answer)) is not None


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES).split())
