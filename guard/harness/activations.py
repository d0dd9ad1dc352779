"""What neurons and layers did over answers: collected in waves into arrays on disk, and how far that is beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from guard.engine.activations import CollectingEngine, Span, new_means
from guard.harness.answers import Example
from guard.harness.progress import Progress
from guard.harness.store import StageStore, translate_os_errors
from guard.ipc.collecting import Part, Site, Table

MEANS, OUTPUTS, LEADS, FACTS = "means.npy", "outputs.npy", "leads.npy", "facts.npy"
_NAMED = {  # the others are called after site and part
    (Site.NEURONS, Part.SPAN): MEANS,
    (Site.NEURONS, Part.LAST_PROMPT): LEADS,
    (Site.OUTPUT, Part.SPAN): OUTPUTS,
}


def file_of(table: Table) -> str:
    """The name of the array that holds these means."""
    site, part = table
    return _NAMED.get(table, f"{site}-{part}.npy")


def collected(work: StageStore, name: str = MEANS) -> int:
    """How many rows of an array are done."""
    done = _done(name)
    return int(work.read_json(done)) if work.has(done) else 0


def facts_of(chosen: Sequence[Example]) -> list[Span]:
    """The part of each answer that states the fact."""
    return [Span([*c.prompt, *c.tokens], len(c.prompt) + c.start, len(c.prompt) + c.end) for c in chosen]


async def collect(
    work: StageStore,
    engine: CollectingEngine,
    spans: Sequence[Span],
    shape: tuple[int, int],
    slots: int,
    say: Callable[[str], None],
    outputs: bool = False,
    name: str = MEANS,
) -> None:
    """Mean |z| / ||h|| over each span, and over the token before it, into the array ``name``.

    float32 [spans, layers, neurons]; ``shape`` is (layers, neurons). With ``outputs``, the mean of h into OUTPUTS,
    float32 [spans, layers, hidden], too.
    """
    done = collected(work, name)
    files = {(Site.NEURONS, Part.SPAN): work.path(name)}
    if outputs:
        files[Site.OUTPUT, Part.SPAN] = work.path(OUTPUTS)
    if not done:
        with translate_os_errors(work.folder):
            for (site, _), path in files.items():
                new_means(path, len(spans), shape[0], shape[1] if site is Site.NEURONS else engine.width(site))
    progress = Progress(say, "collected", len(spans), "prompts" if name == LEADS else "answers", done)
    for start in range(done, len(spans), slots):
        wave = spans[start : start + slots]
        with translate_os_errors(work.folder):
            await engine.collect(wave, range(start, start + len(wave)), files)
        work.write_json(_done(name), start + len(wave))
        progress.add(len(wave))


def _done(name: str) -> str:
    return f"{name.removesuffix('.npy')}.done"
