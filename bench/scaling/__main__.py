"""Compute and simulate what docs/scaling.md says: a minute of one core.

python -m bench.scaling
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import Any

from bench.scaling import ceiling, closed_loop, recorded, roofline
from bench.scaling.autoscaler import Scaling
from bench.scaling.ceiling import STREAMS
from bench.scaling.fleet import ATTEMPTS, RETRY_AFTER
from bench.scaling.scenarios import SEED, START, WAITING, atlas, scenarios
from guard.bench.results import write

FOLDER = recorded.RESULTS / "scaling"


def inputs() -> dict[str, Any]:
    """What the simulation is of, beside its scenarios."""
    return {
        "streams": STREAMS,
        "seed": SEED,
        "start_seconds": START,
        "attempts": ATTEMPTS,
        "retry_after": RETRY_AFTER,
        "recorded": recorded.summary(),
        "closed_loop": closed_loop.compared(atlas()),
        "scaling": asdict(Scaling.deployed()),
        "before": asdict(WAITING),
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write(roofline.summary(), FOLDER / "roofline.json")
    write(ceiling.summary(), FOLDER / "ceiling.json")
    results = []
    for scenario in scenarios():
        began = time.process_time()
        results.append(scenario.result())
        print(f"{scenario.name}: {time.process_time() - began:.1f} s", flush=True)
    write({**inputs(), "scenarios": results}, FOLDER / "simulation.json")


if __name__ == "__main__":
    main()
