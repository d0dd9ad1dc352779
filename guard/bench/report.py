"""``docs/benchmarks.md``: its tables, made of ``bench/results/*.json`` and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "bench" / "results", ROOT / "docs" / "benchmarks.md"
SHOWN = 12  # kernels of a profile
WIDEST = 3.0  # an interval whose ends differ by more than this factor says nothing
BEGIN, END = "<!-- made by `make benchmarks` from bench/results -->", "<!-- end of what is made -->"


def rendered(page: str, results: Path) -> str:
    """The page with its tables made anew."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    tables = "\n".join(line for path in sorted(results.glob("*.json")) for line in _tables(path))
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}"


def _tables(path: Path) -> Iterator[str]:
    result = json.loads(path.read_text(encoding="utf-8"))
    yield f"### {path.stem}"
    yield ""
    if "rows" in result:
        yield from _ratios(result)
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
    if "kernels" in result:
        yield from _kernels(result)
    if "profiles" in result:
        yield from _profiles(result)


def _ratios(result: dict[str, Any]) -> Iterator[str]:
    load = result["load"]
    least = f", and at least {load['least']} in all" if "least" in load else ""
    over = f" Over HTTP, `{load['route']}`." if "route" in load else ""
    yield (
        f"{result['engine']} on {result['machine']}; prompts of {load['prompt']} tokens, answers of {load['output']}, "
        f"{load['requests']} requests by each client{least}, {load['rounds']} rounds.{over}"
    )
    yield ""
    yield "| model | mode | clients | metric | plain | guarded | ratio | 95 % interval |"
    yield "| --- | --- | ---: | --- | ---: | ---: | ---: | --- |"
    unsure = []
    for row in result["rows"]:
        low, high = row["ratio_ci95"]
        if high > WIDEST * low:
            unsure.append(f"{row['mode']}, {row['concurrency']} clients, {row['metric']}")
            continue
        yield (
            f"| {row['model']} | {row['mode']} | {row['concurrency']} | {row['metric']} | {_number(row['plain'])} "
            f"| {_number(row['guarded'])} | {row['ratio']:.3f} | {low:.3f} to {high:.3f} |"
        )
    yield ""
    if unsure:
        yield f"Left out, as the ends of the interval differ by more than a factor of {WIDEST:g}: {'; '.join(unsure)}."
        yield ""


def _kernels(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"The guard's Triton kernels on {result['machine']}, on random bfloat16. Error: the largest difference from "
        "float64 (of `scale` relative to the sum of its terms' sizes, of `tap` to the score, of logits' statistics "
        "in nats). Time: in a CUDA graph, beside a copy of as many bytes as the kernel must move."
    )
    yield ""
    yield "| kernel | layer | H-neurons | rows | bytes | error | microseconds | copy | ratio |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for case in result["kernels"]:
        ratio = case["microseconds"] / case["copy_microseconds"]
        yield (
            f"| {case['kernel']} | {case['layer']} | {case['neurons'] or ''} | {case['rows']} | {case['moved']} "
            f"| {case['error']:.1e} | {_number(case['microseconds'])} | {_number(case['copy_microseconds'])} "
            f"| {ratio:.2f} |"
        )
    yield ""


def _profiles(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{result['engine']} on {result['machine']}, {result['model']}: a mean decoding step under torch's profiler, "
        f"which slows both engines; prompts of {result['prompt']} tokens, mode `score+entropy`. Microseconds, and in "
        f"brackets calls, of the {SHOWN} kernels that differ most."
    )
    yield ""
    for one in result["profiles"]:
        plain, guarded = one["plain"], one["guarded"]
        yield f"| {one['concurrency']} clients | plain | guarded | difference |"
        yield "| --- | ---: | ---: | ---: |"
        for name in ("between", "busy"):
            label = {"between": "from step to step, median", "busy": "the device works"}[name]
            yield _compared(label, _number(plain[name]), _number(guarded[name]), guarded[name] - plain[name])
        by_kernel = {
            name: (plain["kernels"].get(name, (0, 0)), guarded["kernels"].get(name, (0, 0)))
            for name in sorted({*plain["kernels"], *guarded["kernels"]})
        }
        ranked = sorted(by_kernel.items(), key=lambda item: -abs(item[1][1][1] - item[1][0][1]))
        for name, both in ranked[:SHOWN]:
            before, after = (f"{_number(spent)} ({calls:.3g})" for calls, spent in both)
            yield _compared(f"`{name}`", before, after, both[1][1] - both[0][1])
        rest = [sum(both[i][1] for _, both in ranked[SHOWN:]) for i in (0, 1)]
        yield _compared(f"{len(ranked[SHOWN:])} others", _number(rest[0]), _number(rest[1]), rest[1] - rest[0])
        yield ""


def _compared(label: str, plain: str, guarded: str, difference: float) -> str:
    return f"| {label} | {plain} | {guarded} | {'-' if difference < 0 else '+'}{_number(abs(difference))} |"


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
