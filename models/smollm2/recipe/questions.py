"""Questions of wide domains with known answers, for SmolLM2's probe, out of data packages.

Each set is a group; cities also carry the decile of their population among those asked about. ``entity`` is what a
question asks about, so that all questions about one thing fall into the same split. Order is shuffled by a seed: any
prefix of the list has every set.
"""

from __future__ import annotations

import argparse
import calendar
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from guard.judge.question import Question
from models.smollm2.recipe import sources, words
from models.smollm2.recipe.places import capitals, cities, made_up_cities, regions

SEED = 20261125
CITIES = (500, 1600, 1700)  # of the 500 largest, of the next 2,000, of the rest
MADE_UP = 500
ARITHMETIC, DATES = 900, 500

Maker = Callable[[random.Random], Iterator[Question]]


def elements(rng: random.Random) -> Iterator[Question]:
    """Symbols, names and atomic numbers of the chemical elements."""
    for number, name, symbol in sources.elements():
        what = name.lower()
        yield Question(f"What is the chemical symbol of {what}?", (symbol,), name, ("elements",))
        yield Question(f"Which chemical element has the symbol {symbol}?", (name,), name, ("elements",))
        yield Question(f"What is the atomic number of {what}?", (str(number),), name, ("elements",))
        yield Question(f"Which chemical element has the atomic number {number}?", (name,), name, ("elements",))


def codes(rng: random.Random) -> Iterator[Question]:
    """ISO codes of languages, currencies and countries."""
    import pycountry

    for language in pycountry.languages:
        if code := getattr(language, "alpha_2", None):
            name = language.name.split(" (")[0]
            text = f"What is the two-letter ISO 639-1 code of the language {name}?"
            yield Question(text, (code,), name, ("codes",))
            yield Question(f"Which language has the ISO 639-1 code '{code}'?", (name,), name, ("codes",))
    for currency in pycountry.currencies:
        text = f"What is the three-letter ISO 4217 code of the currency {currency.name}?"
        yield Question(text, (currency.alpha_3,), currency.name, ("codes",))
    for country in pycountry.countries:
        name = getattr(country, "common_name", country.name)
        text = f"What is the two-letter ISO 3166 code of {name}?"
        yield Question(text, (country.alpha_2,), name, ("codes",))


def airports(rng: random.Random) -> Iterator[Question]:
    """The city of an international airport by its IATA code."""
    rows = [row for row in sources.airports() if row[2]]
    for code, _, city, _ in rng.sample(rows, 350):
        yield Question(f"Which city is served by the airport with the IATA code {code}?", (city,), code, ("airports",))


def arithmetic(rng: random.Random) -> Iterator[Question]:
    """Sums, differences, products, halves and squares of small numbers."""
    seen: set[str] = set()
    while len(seen) < ARITHMETIC:
        a, b = rng.randint(2, 99), rng.randint(2, 99)
        text, value = rng.choice(
            [
                (f"What is {a} plus {b}?", a + b),
                (f"What is {max(a, b)} minus {min(a, b)}?", abs(a - b)),
                (f"What is {a} times {b % 11 + 2}?", a * (b % 11 + 2)),
                (f"What is half of {2 * a}?", a),
                (f"What is the square of {a % 26 + 2}?", (a % 26 + 2) ** 2),
                (f"What is {a * 10} divided by {rng.choice([2, 5, 10])}?", None),
            ]
        )
        if value is None:
            value = a * 10 // int(text.removesuffix("?").rsplit(" ", 1)[1])
        if text not in seen:
            seen.add(text)
            yield Question(text, (str(value),), text, ("arithmetic",))


def dates(rng: random.Random) -> Iterator[Question]:
    """Weekdays, months, leap years, centuries and Roman numerals."""
    days = list(calendar.day_name)
    months = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ]
    lengths = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    found: dict[str, tuple[str, ...]] = {}
    for i, day in enumerate(days):
        for n in range(2, 13):
            found[f"If today is {day}, which day of the week is it in {n} days?"] = (days[(i + n) % 7],)
        found[f"Which day comes after {day}?"] = (days[(i + 1) % 7],)
        found[f"Which day comes before {day}?"] = (days[(i - 1) % 7],)
    for i, month in enumerate(months):
        found[f"Which month comes after {month}?"] = (months[(i + 1) % 12],)
        found[f"Which month comes before {month}?"] = (months[(i - 1) % 12],)
        found[f"How many days does {month} have in a year that is not a leap year?"] = (str(lengths[i]),)
        for n in (3, 4, 5, 7):
            found[f"Which month is {n} months after {month}?"] = (months[(i + n) % 12],)
    for _ in range(DATES):
        year = rng.randint(1001, 2099)
        ordinal = f"{(year - 1) // 100 + 1}th"
        ordinal = ordinal.replace("21th", "21st")
        found[f"In which century was the year {year}?"] = (f"{ordinal} century", ordinal)
        small = rng.randint(4, 120)
        found[f"How is {small} written in Roman numerals?"] = (roman(small),)
        found[f"Which number is the Roman numeral {roman(rng.randint(4, 400))}?"] = ()
    for text in list(found):
        if not found[text]:
            found[text] = (str(arabic(text.removesuffix("?").rsplit(" ", 1)[1])),)
    for text in rng.sample(sorted(found), DATES):
        yield Question(text, found[text], text, ("dates",))


_ROMAN = ((100, "C"), (90, "XC"), (50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))


def roman(number: int) -> str:
    """A number from 1 to 499 in Roman numerals."""
    text = ""
    for value, letters in ((400, "CD"), *_ROMAN):
        while number >= value:
            text, number = text + letters, number - value
    return text


def arabic(numeral: str) -> int:
    """The number that a Roman numeral writes."""
    return next(n for n in range(1, 500) if roman(n) == numeral)


def from_rows(path: Path, group: str) -> Iterator[Question]:
    """Questions from a file of rows with ``question`` and ``answers`` or ``accepted``; one each."""
    seen = set()
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text, answers = row["question"], row.get("answers") or row.get("accepted")
        if text not in seen and answers:
            seen.add(text)
            yield Question(text, tuple(answers), text, (group,))


def questions(wordnet: Path, nq_open: Path | None = None, triviaqa: Path | None = None) -> list[Question]:
    """Every set, shuffled. ``wordnet``: the folder of ``data.noun``. The two files are left out where not given.

    Raises FitError for a package that is missing.
    """
    net = sources.WordNet(wordnet)
    makers: list[tuple[str, Maker]] = [
        ("cities", lambda rng: cities(rng, CITIES)),
        ("regions", regions),
        ("capitals", capitals),
        ("made-up", lambda rng: made_up_cities(rng, MADE_UP)),
        ("elements", elements),
        ("codes", codes),
        ("airports", airports),
        ("arithmetic", arithmetic),
        ("dates", dates),
        ("translations", words.translations),
        ("people", lambda rng: words.people(net, rng)),
        ("opposites", lambda rng: words.opposites(net, rng)),
        ("forms", lambda rng: words.forms(net, rng)),
        ("animals", lambda rng: words.animals(net, rng)),
    ]
    found: dict[str, Question] = {}
    for name, make in makers:
        for question in make(random.Random(f"{SEED}/{name}")):
            found.setdefault(question.text, question)
    for path, group in ((nq_open, "nq_open"), (triviaqa, "triviaqa")):
        if path is not None:
            for question in from_rows(path, group):
                found.setdefault(question.text, question)
    rows = list(found.values())
    random.Random(SEED).shuffle(rows)
    return rows


def write(rows: Sequence[Question], path: Path) -> None:
    """As JSON lines, which ``hguard fit --data`` reads."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            kept = asdict(row)
            line = {"question": kept["text"], "answers": kept["accepted"], "entity": row.entity, "groups": row.groups}
            file.write(json.dumps(line if row.accepted else {**line, "exists": False}, ensure_ascii=False) + "\n")


def main() -> None:
    """``python -m models.smollm2.recipe.questions --out FILE``"""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--nq-open", type=Path, help="rows of Natural Questions (open): question, answers")
    parser.add_argument("--triviaqa", type=Path, help="rows of TriviaQA: question, answers or accepted")
    given = parser.parse_args()
    rows = questions(given.wordnet, given.nq_open, given.triviaqa)
    write(rows, given.out)
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.groups[0]] += 1
    print(f"{len(rows)} questions: " + ", ".join(f"{name} {n}" for name, n in sorted(counts.items())))


if __name__ == "__main__":
    main()
