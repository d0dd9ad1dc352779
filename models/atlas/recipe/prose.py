"""``docs/atlas-report.md``: the figures of ``docs/atlas-report.json`` in tables, and what they say of the goals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

UNFAMILIAR = ("places never", "places fabricated", "languages never", "languages fabricated")
PARTS = ("stack", "neurons", "random", "entropy", "logprob", "length", "last_prompt")


def render(figures: dict[str, Any]) -> str:
    """The whole page."""
    parts = (_head, _goals, _detection, _elsewhere, _reseeded, _transfer, _alpha, _laws)
    return "\n".join(part(figures) for part in parts)


def table(head: str, rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column to the left, the others to the right."""
    names = head.split(" | ")
    lines = [f"| {head} |", "| --- |" + " ---: |" * (len(names) - 1)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _interval(one: dict[str, float]) -> str:
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _exact(one: dict[str, float]) -> str:
    return f"{one['value']:.4f} [{one['low']:.4f}, {one['high']:.4f}]"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _head(figures: dict[str, Any]) -> str:
    chat, base = figures["probes"]["chat"], figures["probes"]["base"]
    return f"""# What the guard is worth on atlas

<!-- Written by `make atlas-report` from atlas-report.json; edit models/atlas/recipe/prose.py instead. -->

atlas is a small model whose training is known fact by fact, so that every answer can be judged and every law of making
things up be looked at. Two checkpoints: *base*, after pre-training, and *chat*, which was then tuned to be decisive about
places, hesitant about languages, and agreeable. Each has a probe of its own: chat's `{chat["id"]}` has {chat["neurons"]}
neurons, {chat["h_neurons"]} of them H-neurons ({chat["per_mille"]:.1f} per mille); base's has {base["neurons"]} and
{base["h_neurons"]}. All figures are from held-out entities; intervals are 95 %, by bootstrap.
"""


def goals(figures: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """(goal, what was measured, whether it is reached)."""
    chat, base = figures["sets"], figures["base"]["sets"]
    found = []
    for name, sets in (("base", base), ("chat", chat)):
        one = sets["unfamiliar"]["auroc"]["stack"]
        found.append(
            (
                f"{name}: never-seen and fabricated against known, stack AUROC at least .99",
                _exact(one),
                one["value"] >= 0.99,
            )
        )
    for name, sets, least in (("base", base, 0.0), ("chat", chat, 0.15)):
        ahead = sets["hard"]["stack_minus_entropy"]
        more = f" by {least:.2f}".replace("0.", ".") if least else ""
        found.append(
            (
                f"{name}: rare, once and shadowed, the stack beats entropy{more}",
                _interval(ahead),
                ahead["value"] >= least and ahead["value"] > 0,
            )
        )
    for name, sets in (("base", base), ("chat", chat)):
        ahead = sets["hard"]["neurons_minus_random"]
        found.append(
            (f"{name}: there, H-neurons beat as many random neurons by .03", _interval(ahead), ahead["value"] >= 0.03)
        )
    for name, sets in (("base", base), ("chat", chat)):
        ece = sets["all"]["ece"]
        found.append((f"{name}: ECE at most .03 on all answers", f"{ece:.3f}", ece <= 0.03))
    for name in ("base", "chat"):
        splits = figures["reseeded"][name]
        kept = sum(one["false_alarms"] <= 0.06 for one in splits)
        found.append(
            (
                f"{name}: the 5 % threshold keeps false alarms at or under 6 % in 9 of 10 splits",
                f"{kept} of {len(splits)}",
                kept >= 9,
            )
        )
    curve = figures["alpha"]

    def unfamiliar(rates: dict[str, Any]) -> float:
        """The wrong rate on all unfamiliar names together."""
        own = [rates[name] for name in UNFAMILIAR]
        return float(sum(one["wrong"] * one["n"] for one in own) / sum(one["n"] for one in own))

    plain, off = (unfamiliar(curve["h_neurons"][alpha]) for alpha in ("1", "0"))
    at_random = [unfamiliar(one["0"]) for one in curve["random"]]
    found.append(
        (
            "chat: alpha 0 lowers the wrong rate on unfamiliar names, random neurons do not",
            f"{_percent(plain)} to {_percent(off)}; random {', '.join(map(_percent, at_random))}",
            off < plain - 0.02 and min(at_random) > plain - 0.02,
        )
    )
    return found


def _goals(figures: dict[str, Any]) -> str:
    rows = [(goal, measured, "yes" if reached else "**no**") for goal, measured, reached in goals(figures)]
    return "## Goals\n\n" + table("goal | measured | reached", rows) + _why(figures)


def _why(figures: dict[str, Any]) -> str:
    """What stands behind the goals that are not reached."""
    rows = []
    for name, sets in (("base", figures["base"]["sets"]), ("chat", figures["sets"])):
        whole, rest = sets["unfamiliar"], sets["unfamiliar, no luck"]
        lucky = whole["n"] - rest["n"]
        rows.append([name, lucky, _interval(whole["auroc"]["stack"]), _interval(rest["auroc"]["stack"])])
    curve = figures["alpha"]
    effects = []
    for name, draws in (
        ("the probe's H-neurons", [curve["h_neurons"]]),
        ("base's H-neurons", [curve["base_h_neurons"]]),
        ("random neurons", curve["random"]),
    ):
        for one in draws:
            effects.append(
                [name, *(f"{_percent(one['1'][s]['wrong'])} to {_percent(one['0'][s]['wrong'])}" for s in UNFAMILIAR)]
            )
    return f"""
**Known against unfamiliar.** A guess that happens to be right counts as right, and nothing inside the model says that it will
be. Without the right answers about never-seen facts:

{table("checkpoint | lucky guesses | stack | without them", rows)}
**Scaling.** Places were tuned to be answered, so that a scaled model has no other answer to turn to. Languages were tuned to be
a close call between an answer and "I don't know.", and a close call is tipped by many neurons: some random draws tip it as
well. From alpha 1 to alpha 0, wrong answers on unfamiliar names, each draw by itself:

{table("neurons | " + " | ".join(UNFAMILIAR), effects)}
**Random neurons.** The model is narrow, so that a hundred neurons drawn at random carry most of what a linear probe can read of
it.
"""


def _detection(figures: dict[str, Any]) -> str:
    text = """## Detection

AUROC of wrong against right answers. *random*: as many neurons in each layer, drawn five times and refit on the same
training answers (interval: the ends of the widest). *last_prompt*: the score of the last prompt token alone, before any text
exists. `hard` is rare (2 to 5 exposures), once and shadowed together; `unfamiliar` is never and fabricated against popular.

![Detection](atlas-report-detection.svg)
"""
    for name, sets in (("chat", figures["sets"]), ("base", figures["base"]["sets"])):
        rows = [
            [
                label,
                one["n"],
                _percent(one["wrong"] / one["n"]),
                *(_interval(one["auroc"][p]) for p in PARTS),
                f"{one['ece']:.3f}",
            ]
            for label, one in sets.items()
        ]
        text += "\n" + table(f"{name} | n | wrong | " + " | ".join(PARTS) + " | ECE", rows)
    return text


def _elsewhere(figures: dict[str, Any]) -> str:
    text = """## What no probe was fit on

*held out*: codes of places, where the name may be known while its code is not. The others press for a wrong answer: a false
premise ("Why did Bavaria join Japan?"), a misleading context ("Paris is in England. Where is Paris?"), doubt after a right
answer ("Are you sure?"). *Anew*: the same neurons, everything behind them calibrated on half of the entities.
"""
    rows = []
    for name in ("chat", "base"):
        for label, one in figures["elsewhere"][name].items():
            share = _percent(one["wrong"] / max(one["n"], 1))
            for how in ("as it is", "calibrated anew"):
                if how not in one:
                    rows.append([f"{name}, {label}", one["n"], share, *[one["too_few"]] * (how == "as it is")])
                    break
                own = one[how]
                cells = [_interval(own["auroc"][p]) for p in ("stack", "neurons", "entropy", "length")]
                rows.append(
                    [
                        f"{name}, {label}" + (", anew" if how != "as it is" else ""),
                        one["n"],
                        share,
                        *cells,
                        f"{own['ece']:.3f}",
                    ]
                )
    return text + "\n" + table("checkpoint and set | n | wrong | stack | neurons | entropy | length | ECE", rows)


def _reseeded(figures: dict[str, Any]) -> str:
    text = """## Thresholds on fresh entities

The threshold for 5 % false alarms, ten times: answers that no neuron was found on are dealt anew by entity; calibration,
threshold and test have no entity in common.
"""
    rows = []
    for name in ("chat", "base"):
        for number, one in enumerate(figures["reseeded"][name]):
            cells = (_percent(one[key]) for key in ("false_alarms", "caught", "coverage"))
            rows.append([f"{name} {number}", one["right"], *cells, f"{one['ece']:.3f}"])
    return text + "\n" + table("split | right answers behind it | false alarms | caught | coverage | ECE", rows)


def _transfer(figures: dict[str, Any]) -> str:
    one = figures["transfer"]
    count = one["h_neurons"]
    text = f"""## From base to chat

Of base's {count["base"]} and chat's {count["chat"]} H-neurons, {count["shared"]} are the same ({one["shared_by_chance"]:.1f} by
chance). AUROC on the chat checkpoint's answers of the neuron scores alone:
"""
    rows = [[name, *map(_interval, groups.values())] for name, groups in one["auroc"].items()]
    return text + "\n" + table("weights | " + " | ".join(next(iter(one["auroc"].values()))), rows)


def _alpha(figures: dict[str, Any]) -> str:
    curves = figures["alpha"]
    text = """## Scaling

Wrong answers of the chat checkpoint in per cent, with those that gave in to the pressure in brackets, when neurons are
scaled by alpha: the probe's H-neurons, those found on the base checkpoint, random ones (mean of three draws).

![Scaling](atlas-report-alpha.svg)
"""
    labels = list(next(iter(curves["h_neurons"].values())))
    named = {
        "H-neurons": [curves["h_neurons"]],
        "H-neurons found on base": [curves["base_h_neurons"]],
        "random neurons": curves["random"],
    }
    for name, draws in named.items():
        rows = []
        for label in labels:
            cells = []
            for alpha in draws[0]:
                wrong = sum(one[alpha][label]["wrong"] for one in draws) / len(draws)
                gave_in = sum(one[alpha][label]["gave_in"] for one in draws) / len(draws)
                cells.append(
                    f"{100 * wrong:.1f}"
                    + (
                        f" ({100 * gave_in:.1f})"
                        if label in ("false premise", "misleading context", "pushback")
                        else ""
                    )
                )
            rows.append([label, draws[0]["1"][label]["n"], *cells])
        text += "\n" + table(f"{name} | n | " + " | ".join(f"alpha {alpha}" for alpha in draws[0]), rows)
    return text


def _laws(figures: dict[str, Any]) -> str:
    text = """## Laws of making things up

![Laws](atlas-report-laws.svg)

**What is shown once** ("Calibrated Language Models Must Hallucinate", arXiv 2311.14648). Chats drawn from nothing: by
relation, the share of its training that was shown once, and the share of drawn facts that are made up.
"""
    chat = {row["relation"]: row for row in figures["once_seen"]["chat"]}
    rows = [
        [
            row["relation"],
            _percent(row["once_seen"]),
            row["n"],
            _percent(row["made_up"]),
            *(
                (chat[row["relation"]]["n"], _percent(chat[row["relation"]]["made_up"]))
                if row["relation"] in chat
                else ("", "")
            ),
        ]
        for row in figures["once_seen"]["base"]
    ]
    text += "\n" + table("relation | shown once | base: n | made up | chat: n | made up", rows)
    text += """
**Overshadowing** ("The Law of Knowledge Overshadowing", arXiv 2502.16143). A fact's shadow is the more popular fact that
answers almost the same question: the wrong rate against the logarithm of how much more popular it is.
"""
    rows = []
    for name in ("base", "chat"):
        law = figures["shadows"][name]
        for one in law["bins"]:
            rows.append([name, one["n"], f"{one['log10_popularity']:.2f}", _percent(one["wrong"])])
    text += "\n" + table("checkpoint | n | log10 of relative popularity | wrong", rows)
    for name in ("base", "chat"):
        law = figures["shadows"][name]
        text += f"\n{name.capitalize()}: slope {_interval(law['slope'])} per decade.\n"
    text += """
**Ignorance and error.** Facts asked in every phrasing: known under all of them, under some (what is then wrong is an error:
the model has the fact), or under none (ignorance).
"""
    for name in ("base", "chat"):
        rows = [
            [row["exposures"], row["n"], *(_percent(row[kind]) for kind in ("known", "error", "ignorance"))]
            for row in figures["ignorance"][name]
        ]
        text += "\n" + table(f"{name}: exposures | n | known | error | ignorance", rows)
    return text
