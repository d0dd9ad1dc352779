"""What neurons and layers did over answers: collected in waves into arrays on disk, and how far that is beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guard.engine.collecting import CollectingEngine, Span, new_means
from guard.fit.answers import Chosen
from guard.fit.workspace import Workspace, explained

MEANS, OUTPUTS, COLLECTED = "means.npy", "outputs.npy", "collected.json"


def collected(work: Workspace) -> int:
    """How many answers are done."""
    return int(work.read_json(COLLECTED)) if work.has(COLLECTED) else 0


async def collect(
    work: Workspace,
    engine: CollectingEngine,
    chosen: Sequence[Chosen],
    shape: tuple[int, int],
    slots: int,
    say: Callable[[str], None],
    outputs: bool = False,
) -> None:
    """Mean |z| / ||h|| over each answer's span into MEANS, float32 [answers, layers, neurons]; ``shape`` is the latter.

    With ``outputs``, the mean of h into OUTPUTS, float32 [answers, layers, hidden], too.
    """
    done = collected(work)
    path, beside = work.path(MEANS), work.path(OUTPUTS) if outputs else None
    if not done:
        with explained(work.folder):
            new_means(path, len(chosen), *shape)
            if beside is not None:
                new_means(beside, len(chosen), shape[0], engine.hidden)
    for start in range(done, len(chosen), slots):
        wave = chosen[start : start + slots]
        spans = [
            Span([*one.prompt, *one.tokens], len(one.prompt) + one.start, len(one.prompt) + one.end) for one in wave
        ]
        with explained(work.folder):
            await engine.collect(spans, range(start, start + len(wave)), path, beside)
        work.write_json(COLLECTED, start + len(wave))
        if start // slots % 20 == 0:
            say(f"collected {start + len(wave)} of {len(chosen)} answers")
