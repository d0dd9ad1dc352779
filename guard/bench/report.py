"""``docs/benchmarks.md``: its tables, made of ``bench/results/*.json`` and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- made by `make benchmarks` from bench/results -->", "<!-- end of what is made -->"


def rendered(page: str, results: Path) -> str:
    """The page with its tables made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    tables = "\n".join(line for path in sorted(results.glob("*.json")) for line in _tables(path))
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def _tables(path: Path) -> Iterator[str]:
    result = json.loads(path.read_text(encoding="utf-8"))
    load = result["load"]
    least = f", and at least {load['least']} in all" if "least" in load else ""
    over = f" Over HTTP, `{load['route']}`." if "route" in load else ""
    yield f"### {path.stem}"
    yield ""
    yield (
        f"{result['engine']} on {result['machine']}; prompts of {load['prompt']} tokens, answers of {load['output']}, "
        f"{load['requests']} requests by each client{least}, {load['rounds']} rounds.{over}"
    )
    yield ""
    yield "| model | mode | clients | metric | plain | guarded | ratio | 95 % interval |"
    yield "| --- | --- | ---: | --- | ---: | ---: | ---: | --- |"
    for row in result["rows"]:
        low, high = row["ratio_ci95"]
        yield (
            f"| {row['model']} | {row['mode']} | {row['concurrency']} | {row['metric']} | {_number(row['plain'])} "
            f"| {_number(row['guarded'])} | {row['ratio']:.3f} | {low:.3f} to {high:.3f} |"
        )
    yield ""
    if "parts" in result:
        yield "One decoding step of the guard, piece by piece, microseconds (the best of its timings):"
        yield ""
        yield from _parts(result["parts"])
        yield ""
    if "client" in result:
        shares = [f"{part['core_share']:.1%} with {part['concurrency']}" for part in result["client"]]
        busy = result.get("load_average")
        others = "" if busy is None else f" Before the servers started, the machine's load average was {busy:.1f}."
        yield f"The clients' own process took this much of one core: {', '.join(shares)}.{others}"
        yield ""


def _parts(parts: list[dict[str, Any]]) -> Iterator[str]:
    rows = sorted({part["rows"] for part in parts})
    yield "| piece | " + " | ".join(f"{count} rows" for count in rows) + " |"
    yield "| --- |" + " ---: |" * len(rows)
    for name in dict.fromkeys(part["part"] for part in parts):
        by_rows = {part["rows"]: part["microseconds"] for part in parts if part["part"] == name}
        yield f"| {name} | " + " | ".join(_number(by_rows[count]) for count in rows) + " |"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def main() -> None:
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main()
