"""``docs/operations.md``: its figures, made of ``bench/results/operations/*.json`` and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "bench" / "results" / "operations", ROOT / "docs" / "operations.md"


def rendered(page: str, results: Path) -> str:
    """The page with its figures made anew; a part whose measurement is missing stays empty."""
    for name, lines in (("overload", overload), ("soak", soak)):
        path = results / f"{name}.json"
        made = "\n".join(lines(json.loads(path.read_text(encoding="utf-8")))) + "\n\n" if path.is_file() else ""
        begin, end = f"<!-- made by `make benchmarks`: {name} -->\n", f"<!-- end: {name} -->"
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n{made}{end}{rest.partition(end)[2]}" if rest else page
    return page


def overload(result: dict[str, Any]) -> Iterator[str]:
    machine, load = result["machine"], result["settings"]
    yield (
        f"`python -m bench.overload` on {machine['processor']}, {machine['cores']} cores, server and clients together: atlas with "
        f"room for {load['fits']} answers at once and {load['fits']} more in the queue, answers of {load['tokens']} tokens, rounds of "
        f"{load['seconds']:g} s. Ten times as many clients as fit, against just as many as fit, in {load['rounds']} pairs of rounds "
        "that alternate:"
    )
    yield ""
    yield "| ten times the clients, which after a refusal | goodput, of that without overload | refusals/s | refusal p50, ms | p99, ms |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    said = {"patient": "wait for Retry-After", "impatient": "wait 0.1 s", "hammering": "ask again at once"}
    for name, figures in result["figures"].items():
        ratio, refusal = figures["goodput_ratio"], figures["refusal_ms"]
        yield (
            f"| {said[name]} | {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) "
            f"| {figures['refusals_per_second']:.0f} | {refusal['p50']:.0f} | {refusal['p99']:.0f} |"
        )


def soak(result: dict[str, Any]) -> Iterator[str]:
    requests, figures = result["requests"], result["figures"]
    total = sum(requests.values())
    aborted = requests.get("aborted", 0)
    invalid = sum(count for name, count in requests.items() if name.startswith("invalid"))
    refused = requests.get("valid 503", 0)
    yield (
        f"The last run, {result['minutes']:g} minutes on {result['machine']}: {total} requests, of which {aborted} were aborted, "
        f"{invalid} were invalid and {refused} found no place. {_verdict(result['broken'])} After the warm-up (half of the time):"
    )
    yield ""
    yield "| | first | last | change a minute (95 % interval) |"
    yield "| --- | ---: | ---: | --- |"
    names = {f"memory of {name}, MiB": fit for name, fit in figures["memory_mib"].items()}
    names |= {name: figures[name] for name in ("descriptors", "threads", "series", "series_of_http", "handlers")}
    for name, fit in names.items():
        yield f"| {name.replace('_', ' ')} | {fit['first']:g} | {fit['last']:g} | {fit['per_minute']:+.2f} ({fit['low']:+.2f} to {fit['high']:+.2f}) |"
    yield ""
    yield "At rest afterwards no slot was in use and no request in flight."


def _verdict(broken: list[str]) -> str:
    return "No bound was broken." if not broken else f"Broken bounds: {'; '.join(broken)}."


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
