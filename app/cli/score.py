"""``hguard score``: the risk of each answer in a file, without a server."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.cli.fit import stopped
from app.cli.flags import add_flags
from app.settings import Settings, settings_from
from guard.errors import FitError, GuardError
from guard.harness.progress import Progress, tell
from guard.launch.engines import run_engines

if TYPE_CHECKING:
    from app.protocols.scoring import Pair
    from app.server.app import Plan

_SETTINGS = ("model", "probe", "revision", "compile", "relaxed", "threshold", "target_fpr", "slots")
_PARQUET = ".parquet"


def add_parser(commands: Any) -> None:
    """Add the command to ``hguard``'s."""
    parser = commands.add_parser(
        "score",
        help="score the answers of a file, as /risk does, without a server",
        epilog="A row has a question (messages, prompt, question or problem) and an answer (response, answer or "
        "output). The same command goes on where it was stopped. Exit status 1 when a row could not be scored. What "
        "follows -- goes to vLLM.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("data", metavar="FILE", help="JSON lines, a JSON array, CSV or TSV")
    parser.add_argument(
        "--out", type=Path, required=True, help=f"JSON lines that grow, or a {_PARQUET} file made of them at the end"
    )
    parser.add_argument("--tokens", action="store_true", help="the risk of each token, too")
    parser.add_argument("--explain", action="store_true", help="what each signal adds to the risk, too")
    add_flags(parser, Settings, only=_SETTINGS)


def run(options: argparse.Namespace, extra: list[str]) -> int:
    """Score what is not scored yet. Raises GuardError for a file that cannot be read, or is another one than before."""
    from app.protocols.options import HallucinationOptions
    from app.protocols.scoring import pairs_of
    from app.server.app import plan
    from guard.harness.datafile import read_file
    from guard.harness.store import read_rows, translate_os_errors

    if options.out.suffix == _PARQUET:
        _require_parquet()
    grows: Path = options.out.with_suffix(".jsonl") if options.out.suffix == _PARQUET else options.out
    data = read_file(Path(options.data))
    prepared = plan(settings_from({name: value for name, value in vars(options).items() if name in _SETTINGS}), extra)
    threshold = prepared.resolver.threshold
    pairs = pairs_of(data, HallucinationOptions(threshold=threshold, tokens=options.tokens, explain=options.explain))
    with translate_os_errors(grows):
        grows.parent.mkdir(parents=True, exist_ok=True)
        done = read_rows(grows)
    _require_same(grows, done, pairs, prepared)
    if len(done) < len(pairs):
        try:
            run_engines(_score(prepared, pairs, grows, len(done)))
        except KeyboardInterrupt:
            return stopped(grows)
    with translate_os_errors(grows):
        rows = read_rows(grows)
        if grows != options.out:
            _write_parquet(rows, options.out)
    return _told(rows, options.out)


def _require_same(grows: Path, done: Sequence[Any], pairs: Sequence[Pair], plan: Plan) -> None:
    """Raises FitError where the rows that are there were made of other texts, or by another probe."""
    try:
        digests = [row["digest"] for row in done]
        probes = {row["hallucination"].get("probe", {}).get("revision") for row in done} - {None}
    except (KeyError, TypeError, AttributeError):
        raise FitError(f"{grows} holds other rows than this command writes: give another --out") from None
    for pair, digest in zip(pairs, digests, strict=False):
        if pair.digest != digest:
            raise FitError(f"{grows} was made of other texts or options ({pair.place} differs): give another --out")
    if len(done) > len(pairs):
        raise FitError(f"{grows} has {len(done)} rows, and there are {len(pairs)} to score: give another --out")
    if others := sorted(probes - {plan.bundle.revision}):
        raise FitError(f"{grows} was scored with another probe ({', '.join(others)}): give another --out")


async def _score(plan: Plan, pairs: Sequence[Pair], grows: Path, done: int) -> None:
    from app.protocols.risk import RiskScorer
    from app.protocols.routes import Guard
    from app.protocols.scoring import scored
    from app.protocols.tokenizer import Detokenizer
    from app.protocols.wire import Writer
    from app.telemetry.record import Exporters
    from guard.harness.store import appending, translate_os_errors
    from guard.launch.engines import chat_template, guarded_engine

    settings = plan.settings
    tell(f"hguard: starting {plan.name} ...")
    async with guarded_engine(plan.args, plan.bundle, plan.resolver.policy, settings.slots) as engine:
        reader = Detokenizer(copy.deepcopy(engine.get_tokenizer()), chat_template(plan.args))
        guard = Guard(plan.resolver, Writer(plan.bundle, reader.spell), Exporters(()), "", "")

        async def current() -> Guard:
            return guard

        at_once = min(settings.slots, int(engine.vllm_config.scheduler_config.max_num_seqs))
        scorer = RiskScorer(engine, plan.name, current, reader, None, at_once)
        progress = Progress(tell, "scored", len(pairs), "answers", done)
        with translate_os_errors(grows), appending(grows) as append:
            async with aclosing(scored(scorer, pairs[done:])) as rows:
                async for row in rows:
                    append(row)
                    progress.add()


def _told(rows: Sequence[dict[str, Any]], out: Path) -> int:
    """Say what came out; the exit status."""
    results = [row["hallucination"] for row in rows]
    flagged = sum(any(one["flagged"] for one in result.get("results", ())) for result in results)
    faults = [result for result in results if result["type"] != "hallucination_results"]
    tell(f"hguard: {out} has {len(rows)} answers, of which {flagged} are flagged")
    if faults:
        tell(f"hguard: {len(faults)} could not be scored; the first: {faults[0]['message']}")
    return int(bool(faults))


def _require_parquet() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise GuardError(
            "a Parquet file is written with pyarrow, which is not installed: `pip install pyarrow`, or give --out a "
            "name that ends in .jsonl"
        ) from None


def _write_parquet(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """One column for each field of the rows, and of the verdict those that are numbers or words."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = []
    for row in rows:
        verdict = row["hallucination"]
        result = verdict.get("results", [{}])[0]
        said = {name: result.get(name) for name in ("risk", "flagged", "threshold", "scored_tokens", "prompt_risk")}
        whole = json.dumps(verdict, ensure_ascii=False)
        flat.append({**row, **said, "hallucination": whole})
    beside = out.with_name(f"{out.name}.part")
    pq.write_table(pa.Table.from_pylist(flat), beside)
    beside.replace(out)
