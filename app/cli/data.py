"""``hguard data``: what a file of questions holds, before anything is done with it."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the commands to ``hguard``'s."""
    data = commands.add_parser("data", help="check a file of questions before a fit")
    actions = data.add_subparsers(dest="action", required=True)
    check = actions.add_parser(
        "check",
        help="say what a file of questions holds: format, fields, repeats, contradictions, entities, splits",
        epilog="Exit status 1 when hguard fit would refuse it.",
    )
    check.set_defaults(run=_check)
    check.add_argument("data", metavar="FILE", help="as for --data of hguard fit")
    check.add_argument("--limit", type=int, help="read the first N questions only")
    check.add_argument("--seed", type=int, default=0, help="of the splits (default: 0)")


def _check(options: argparse.Namespace, extra: list[str]) -> int:
    from guard.errors import FitError
    from guard.harness.questions import gather
    from guard.harness.survey import survey

    gathered = gather(options.data, options.limit, go_on=True)
    for heading, text in survey(gathered, options.seed):
        print(f"{heading:16s} {text}")
    if gathered.faults:
        raise FitError(f"{options.data}: {len(gathered.faults)} rows cannot be used; the first is {gathered.faults[0]}")
    if not gathered.questions:
        raise FitError(f"{options.data} has no questions")
    return 0
