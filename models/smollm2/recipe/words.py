"""Questions about words and persons: CLDR's names in other languages, and what WordNet says."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from guard.judge.question import Question
from models.smollm2.recipe.sources import Synset, WordNet

LANGUAGES = {
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "it": "Italian",
    "pt": "Portuguese",
    "nl": "Dutch",
    "sv": "Swedish",
    "pl": "Polish",
    "fi": "Finnish",
    "tr": "Turkish",
    "id": "Indonesian",
    "ro": "Romanian",
}
TRANSLATIONS, PEOPLE, OPPOSITES, FORMS, ANIMALS = 1100, 1200, 700, 700, 700

_COUNTRIES = {
    "United States": ("American", "United States", "US"),
    "English": ("English", "British", "England"),
    "Scottish": ("Scottish", "British", "Scotland"),
    "Welsh": ("Welsh", "British", "Wales"),
    "British": ("British", "English", "Scottish"),
    "Irish": ("Irish", "Ireland"),
    "French": ("French", "France"),
    "German": ("German", "Germany"),
    "Italian": ("Italian", "Italy"),
    "Russian": ("Russian", "Russia", "Soviet"),
    "Soviet": ("Soviet", "Russian", "Russia"),
    "Spanish": ("Spanish", "Spain"),
    "Dutch": ("Dutch", "Netherlands"),
    "Austrian": ("Austrian", "Austria"),
    "Swiss": ("Swiss", "Switzerland"),
    "Swedish": ("Swedish", "Sweden"),
    "Canadian": ("Canadian", "Canada"),
    "Danish": ("Danish", "Denmark"),
    "Norwegian": ("Norwegian", "Norway"),
    "Australian": ("Australian", "Australia"),
    "Japanese": ("Japanese", "Japan"),
    "Polish": ("Polish", "Poland"),
    "Belgian": ("Belgian", "Belgium"),
    "Czech": ("Czech", "Czechoslovak"),
    "Mexican": ("Mexican", "Mexico"),
    "Chinese": ("Chinese", "China"),
    "Hungarian": ("Hungarian", "Hungary"),
}
_TRADES = re.findall(
    r"\w+",
    """
    actor actress anatomist anthropologist architect astronomer astronaut biologist botanist
    chemist choreographer composer conductor dancer dramatist economist engineer explorer geologist
    historian inventor jurist mathematician naturalist novelist painter philosopher physician
    physicist physiologist pianist poet politician psychologist sculptor singer sociologist
    statesman surgeon violinist writer
    """,
)
_ALSO = {
    "actress": ("actor",),
    "astronaut": ("test pilot",),
    "dramatist": ("playwright", "writer"),
    "novelist": ("writer", "author"),
    "physician": ("doctor",),
    "poet": ("writer",),
    "statesman": ("politician",),
    "writer": ("author", "novelist", "poet", "playwright", "journalist"),
}
_CLASSES = {"bird": "01503061", "fish": "02512053", "mammal": "01861778", "reptile": "01661091", "insect": "02159955"}


def translations(rng: random.Random) -> Iterator[Question]:
    """Days, months and countries in twelve languages, both ways."""
    from babel import Locale

    english = Locale("en")
    found: list[Question] = []
    for code, language in LANGUAGES.items():
        other = Locale(code)
        pairs = [(english.days["format"]["wide"][i], other.days["format"]["wide"][i]) for i in range(7)]
        pairs += [(english.months["format"]["wide"][i], other.months["format"]["wide"][i]) for i in range(1, 13)]
        pairs += [
            (english.territories[t], other.territories[t])
            for t in english.territories
            if str(t).isalpha() and t in other.territories
        ]
        for own, foreign in pairs:
            if own == foreign or own.casefold() == foreign.casefold() or "(" in own + foreign:
                continue
            found.append(Question(f"What is '{own}' in {language}?", (foreign,), own, ("translations",)))
            text = f"What does the {language} word '{foreign}' mean in English?"
            found.append(Question(text, (own,), own, ("translations",)))
    yield from rng.sample(found, TRANSLATIONS)


def people(net: WordNet, rng: random.Random) -> Iterator[Question]:
    """What a person was, and of which nation."""
    found = []
    for name, gloss in net.people():
        nation = next((n for n in _COUNTRIES if gloss.startswith(f"{n} ")), None)
        if nation is None:
            continue
        text = f"What was the nationality of {name}?"
        found.append(Question(text, _COUNTRIES[nation], name, ("people",)))
        trades = [t for t in _TRADES if re.search(rf"\b{t}\b", gloss.split(" who ")[0].split(" noted ")[0])]
        if trades:
            accepted = tuple(dict.fromkeys(w for t in trades for w in (t, *_ALSO.get(t, ()))))
            found.append(Question(f"What was the profession of {name}?", accepted, name, ("people",)))
    found.sort(key=lambda question: question.text)
    yield from rng.sample(found, min(PEOPLE, len(found)))


def opposites(net: WordNet, rng: random.Random) -> Iterator[Question]:
    """The opposite of an adjective; every direct antonym of every sense of the word counts."""
    senses = net.synsets("adj")
    accepted: dict[str, list[str]] = {}
    for sense in senses.values():
        for own, key, index in sense.opposites:
            if own.isalpha() and own.islower():
                accepted.setdefault(own, []).append(senses[key].words[index])
    for own in rng.sample(sorted(accepted), OPPOSITES):
        yield Question(f"What is the opposite of '{own}'?", tuple(dict.fromkeys(accepted[own])), own, ("opposites",))


def forms(net: WordNet, rng: random.Random) -> Iterator[Question]:
    """Irregular plurals, and past forms of irregular verbs."""
    found = []
    for base, plurals in net.irregular("noun").items():
        if base.isalpha() and base.islower() and 3 <= len(base) <= 9:
            found.append(Question(f"What is the plural of '{base}'?", tuple(plurals), base, ("forms",)))
    for base, past in net.irregular("verb").items():
        kept = tuple(form for form in past if not form.endswith("ing"))
        if base.isalpha() and kept and len(kept) <= 2 and not any(form.endswith("ed") for form in kept):
            found.append(Question(f"What is the past tense of '{base}'?", kept, base, ("forms",)))
    found.sort(key=lambda question: question.text)
    yield from rng.sample(found, FORMS)


def animals(net: WordNet, rng: random.Random) -> Iterator[Question]:
    """Which of five kinds an animal is."""
    senses = net.synsets("noun")
    found = []
    for sense in senses.values():
        kind = _kind(sense, senses)
        if kind and not any(word[0].isupper() or word.startswith("genus ") for word in sense.words):
            text = f"Is the {sense.words[0]} a bird, a fish, a mammal, a reptile or an insect?"
            found.append(Question(text, (kind,), sense.words[0], ("animals",)))
    found = list({question.text: question for question in found}.values())
    found.sort(key=lambda question: question.text)
    yield from rng.sample(found, ANIMALS)


def _kind(sense: Synset, senses: dict[str, Synset]) -> str | None:
    """The class of animals above a sense."""
    keys, seen = list(sense.up), set()
    while keys:
        key = keys.pop()
        for name, top in _CLASSES.items():
            if key == top:
                return name
        if key not in seen and key in senses:
            seen.add(key)
            keys.extend(senses[key].up)
    return None
