"""A command all of whose processes have their imports from the first: ``python -m tests.engine.once MODULE ...``.

Where a command needs surroundings that no process has which is there already, as a machine's of ``nodes``.
"""

from __future__ import annotations

import importlib
import sys

from guard.launch.engines import prepare_environment


def main(module: str, *arguments: str) -> int:
    """Run the module's ``main``; its exit status."""
    prepare_environment()  # as the command does, before vLLM is imported
    from tests.engine import forked, preloaded  # noqa: F401

    forked.from_here()
    return int(importlib.import_module(module).main(arguments))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
