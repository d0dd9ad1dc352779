"""Programs that read what a fit left, and leave figures in the same folder, which the report reads."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from guard.harness.store import write_json
from guard.probe.cett import norms_of
from models.smollm2.checkpoint import checkpoint
from models.smollm2.recipe.answered import Answered, load
from models.smollm2.recipe.fits import Fits

Say = Callable[[str], None]


def run(doc: str | None, file: str, measure: Callable[[Answered, Fits, Say], Any]) -> None:
    """One that leaves ``measure``'s figures in ``file``; ``doc``: what its help says."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--work", type=Path, required=True, help="answers and activations of a fit")
    parser.add_argument("--questions", type=Path, help="where they are not in the same folder")
    parser.add_argument("--model", type=Path, help="the checkpoint, where it is not the pinned one")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", file=sys.stderr, flush=True)

    with threadpool_limits(limits=given.threads):
        norms = norms_of(given.model or checkpoint(say), 30, 1536)
        answered = load(given.work, norms, questions=given.questions)
        write_json(given.work / file, measure(answered, Fits(answered, given.work / "report", say), say))
