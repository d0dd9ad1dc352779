"""The figures of ``docs/benchmarks.md``, ``operations.md`` and ``scaling.md``, made of ``bench/results``, and README's.

README's are those of the cards of the probes that ship and of ``bench/results``; none is written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from guard.templates import template

HERE = Path(__file__).resolve().parent
RESULTS, TEMPLATES, DOCS = HERE / "results", HERE / "templates", HERE.parent / "docs"
PAGE, OPERATIONS, README = DOCS / "benchmarks.md", DOCS / "operations.md", HERE.parent / "README.md"
SCALING = DOCS / "scaling.md"
MODELS = HERE.parent / "models"
SHOWN = 12  # kernels of a profile
WIDEST = 3.0  # an interval whose ends differ by more than this factor says nothing
BEGIN, END = "<!-- made by `make benchmarks` from bench/results -->", "<!-- end of what is made -->"


def rendered(page: str, results: Path) -> str:
    """The page of benchmarks with its tables made anew."""
    own = {"sure": _sure, "number": _number, "compared": _compared, "widest": WIDEST, "shown": SHOWN}
    return _filled(page, BEGIN, END, "".join(_made("benchmark", one, **own) for one in sorted(results.glob("*.json"))))


def operations(page: str, results: Path) -> str:
    """The page of operations with its figures made anew."""
    return _parts(page, results, ("overload", "soak"))


def scaling(page: str, results: Path) -> str:
    """The page of scaling with its figures made anew."""
    return _parts(page, results, ("roofline", "ceiling", "simulation"), number=_number)


def readme(page: str) -> str:
    """README with its table made anew."""
    models = [_smollm2(), _atlas()]
    made = template(TEMPLATES / "readme.md.j2").render(models=models, beside=_beside())
    return _filled(page, "<!-- made by `make benchmarks` of the reports -->", "<!-- end of the figures -->", made)


def _smollm2() -> dict[str, str]:
    sets = _read(DOCS / "smollm2-report.json")["held_out"]["sets"]  # those with enough of both kinds
    return {"name": "SmolLM2-135M-Instruct", **_worth("smollm2", sets), **_cost("cpu-smollm2")}


def _atlas() -> dict[str, str]:
    sets = ("codes", "kinds", "languages", "places")
    return {"name": "atlas, 4.5 million weights", **_worth("atlas", sets), **_cost("cpu-atlas")}


def _worth(model: str, sets: Collection[str]) -> dict[str, str]:
    """What the probe that ships is worth on the held-out answers of its fit; AUROC is the mean of these sets."""
    card = _read(MODELS / model / "probe/probe.json")
    metrics, at = card["metrics"], card["at_thresholds"]["0.05"]

    def mean(detector: str) -> float:
        return sum(metrics[name]["auroc"][detector]["value"] for name in sets) / len(sets)

    return {
        "wrong": f"{metrics['all']['wrong'] / metrics['all']['n']:.0%} of {metrics['all']['n']}, {len(sets)} sets",
        "risk": f"**{mean('stack'):.3f}**",
        "entropy": f"{mean('entropy'):.3f}",
        "caught": f"{at['caught']:.0%}",
        "alarms": f"{at['false_alarms']:.1%}",
    }


def _beside() -> list[dict[str, str]]:
    """The guard and what else a person could run: speed with most clients relative to plain vLLM, and AUROC."""
    figures = _read(RESULTS / "beside-cpu-smollm2.json")
    most = max(row["clients"] for row in figures["beside"])
    speed = {row["contender"]: row["ratio"] for row in figures["beside"] if row["clients"] == most}
    return [
        {"name": name, "clients": str(most), "speed": f"{speed[name]:.2f}", "auroc": f"{one['auroc']:.2f}"}
        for name, one in figures["worth"].items()
    ]


def _cost(name: str) -> dict[str, str]:
    """Speed by clients, and memory, of a comparison in which every signal is read."""
    rows = [row for row in _read(RESULTS / f"{name}.json")["rows"] if row["mode"] == "score+entropy"]
    speed = [f"{row['ratio']:.2f} ({row['concurrency']})" for row in rows if row["metric"] == "tokens/s"]
    (memory,) = (row for row in rows if row["metric"] == "memory, MB")
    return {"speed": ", ".join(speed), "memory": f"{memory['guarded'] - memory['plain']:+.0f} MB"}


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _made(name: str, file: Path, **more: Any) -> str:
    figures = _read(file)
    return template(TEMPLATES / f"{name}.md.j2").render(figures, name=file.stem, **more)


def _parts(page: str, results: Path, names: Collection[str], **more: Any) -> str:
    """Parts of a page made anew; one whose measurement is missing stays empty."""
    for name in names:
        file = results / f"{name}.json"
        made = _made(name, file, **more) if file.is_file() else ""
        page = _filled(page, f"<!-- made by `make benchmarks`: {name} -->", f"<!-- end: {name} -->", made)
    return page


def _filled(page: str, begin: str, end: str, made: str) -> str:
    before, rest = page.split(begin)
    return f"{before}{begin}\n\n{made}{end}{rest.split(end)[1]}"


def _sure(row: dict[str, Any]) -> bool:
    low, high = row["ratio_ci95"]
    return bool(high <= WIDEST * low)


def _compared(plain: dict[str, Any], guarded: dict[str, Any]) -> Iterator[tuple[str, str, str, float]]:
    """(what, plain, guarded, difference) of two profiles: the steps, the kernels that differ most, and all others."""
    for label, key in (("from step to step, median", "between"), ("the device works", "busy")):
        yield label, _number(plain[key]), _number(guarded[key]), guarded[key] - plain[key]
    names = sorted({*plain["kernels"], *guarded["kernels"]})
    both = [(name, *(one["kernels"].get(name, (0, 0)) for one in (plain, guarded))) for name in names]
    both.sort(key=lambda one: -abs(one[2][1] - one[1][1]))
    for name, before, after in both[:SHOWN]:
        told = (f"{_number(spent)} ({calls:.3g})" for calls, spent in (before, after))
        yield f"`{name}`", *told, after[1] - before[1]
    rest = [sum(one[side][1] for one in both[SHOWN:]) for side in (1, 2)]
    yield f"{len(both[SHOWN:])} others", *map(_number, rest), rest[1] - rest[0]


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    OPERATIONS.write_text(operations(OPERATIONS.read_text(encoding="utf-8"), RESULTS / "operations"), encoding="utf-8")
    SCALING.write_text(scaling(SCALING.read_text(encoding="utf-8"), RESULTS / "scaling"), encoding="utf-8")
    README.write_text(readme(README.read_text(encoding="utf-8")), encoding="utf-8")
