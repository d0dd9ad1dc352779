"""Run vLLM's tests of its API against plain vLLM and the guard, and say what differs.

    python -m bench.upstream --work build/vllm-tests [--only completion ...] [--sides plain score abstain]

Ends with status 1 when a difference is not in ``differences.toml``, or one that is there is none. ``--only`` takes the
files whose names hold one of the words, and what is listed for others does not count then; ``--sides`` the servers, of
the others the last outcomes count. ``--resume`` goes on with a run that was cut short. Outcomes, and what each failure
said, are in WORK/*.jsonl, what servers printed in WORK/*.log.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.settings import ATLAS
from bench.upstream import archive, checkpoint, plugin
from bench.upstream.results import GUARDED, Side, counted, differing, read_known, read_outcomes, verdict
from guard.errors import GuardError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Of vLLM's tests of its API those that ask a server of one text model. openai/models/test_models.py is none: it looks
# for an adapter in the list of models, and no server gets any.
FILES = (
    "anthropic/test_messages.py",
    "openai/chat_completion/test_batched_chat_completions.py",
    "openai/chat_completion/test_chat.py",
    "openai/chat_completion/test_chat_completion.py",
    "openai/chat_completion/test_chat_echo.py",
    "openai/chat_completion/test_chat_logit_bias_validation.py",
    "openai/chat_completion/test_completion_with_function_calling.py",
    "openai/chat_completion/test_enable_force_include_usage.py",
    "openai/chat_completion/test_include_reasoning.py",
    "openai/chat_completion/test_logprob_token_ids.py",
    "openai/chat_completion/test_root_path.py",
    "openai/completion/test_completion.py",
    "openai/completion/test_prompt_validation.py",
    "openai/responses/test_basic.py",
    "openai/responses/test_simple.py",
    "openai/responses/test_stateful.py",
    "openai/responses/test_structured_output.py",
    "openai/test_chunked_prompt.py",
    "openai/test_return_token_ids.py",
    "openai/test_return_tokens_as_ids.py",
    "serve/instrumentator/test_basic.py",
    "serve/instrumentator/test_metrics.py",
    "serve/instrumentator/test_orca_metrics.py",
    "serve/tokenize/test_tokenization.py",
)
PYTEST = ("-sv", "-pbench.upstream.plugin", "-pno:cacheprovider", "-pno:schemathesis", "-oasyncio_mode=strict")
SECONDS = 300  # of one test; a random model may write to the end of its context


def run(side: Side, files: list[str], tests: Path, model: Path, home: Path, work: Path, resume: bool) -> dict[str, str]:
    """The outcomes of ``files`` against one server. Raises GuardError when pytest itself falls over.

    ``resume``: of tests that have an outcome, that one counts.
    """
    out, log = work / f"{side.value}.jsonl", work / f"{side.value}.log"
    earlier = out.read_text(encoding="utf-8").splitlines() if out.is_file() else []
    kept = [line for line in earlier if resume or not json.loads(line)["test"].startswith(tuple(files))]
    out.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    chosen = {"side": side.value, "model": str(model), "root": str(ROOT), "out": str(out)}
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        plugin.ENVIRONMENT: json.dumps(chosen),
    }
    line = [sys.executable, "-P", "-m", "pytest", *PYTEST, f"--timeout={SECONDS}", f"--rootdir={tests}", "-cpytest.ini"]
    line += [f"tests/entrypoints/{name}" for name in files]
    (tests / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    with log.open("ab") as output:
        done = subprocess.run(line, cwd=tests, env=environment, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
    if done.returncode not in (0, 1, *([pytest.ExitCode.NO_TESTS_COLLECTED] if resume else [])):
        raise GuardError(f"pytest ended with status {done.returncode}; see {log}")
    return of(files, out)


def of(files: list[str], out: Path) -> dict[str, str]:
    """What ``out`` says of the tests in ``files``."""
    found = read_outcomes(out) if out.is_file() else {}
    return {test: outcome for test, outcome in found.items() if test.startswith(tuple(files))}


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.upstream", description=__doc__)
    parser.add_argument("--work", type=Path, default=ROOT / "build/vllm-tests")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--sides", nargs="*", type=Side, default=[Side.PLAIN, *GUARDED], choices=list(Side))
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    work = options.work.resolve()
    tests = checkpoint.renamed(archive.unpacked(archive.fetched(work), work / "src"))
    model = checkpoint.written(work / "model", ATLAS)
    home = checkpoint.hub(model, work / "hub")
    files = [name for name in FILES if any(word in name for word in options.only)]
    if options.only and not files:
        parser.error(f"no file's name holds one of {', '.join(options.only)}")
    files = files or list(FILES)
    known = read_known(HERE / "differences.toml")
    if options.only:
        known = known.of(files)
    outcomes: dict[Side, dict[str, str]] = {}
    for side in Side:
        if side in options.sides:
            outcomes[side] = run(side, files, tests, model, home, work, options.resume)
        else:
            outcomes[side] = of(files, work / f"{side.value}.jsonl")
        print(f"{side.value}: {counted(outcomes[side].values())}", flush=True)
    guarded = {side: outcomes[side] for side in GUARDED}
    for side, found in guarded.items():
        for test, what in differing(outcomes[Side.PLAIN], found).items():
            print(f"  {side.value}: {test}: {what}: {known.reason(side, test) or 'NOT LISTED'}")
    wrong = verdict(outcomes[Side.PLAIN], guarded, known)
    print("\n".join(wrong) or "nothing differs but what is listed")
    return bool(wrong)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except GuardError as error:
        print(f"hguard: {error}", file=sys.stderr)
        sys.exit(1)
