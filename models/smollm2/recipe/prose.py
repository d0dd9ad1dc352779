"""``docs/smollm2-report.md``: the figures of ``smollm2-report.json`` in tables, and what they say of goals and claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from models.smollm2.recipe.claims import claims
from models.smollm2.recipe.goals import goals
from models.smollm2.recipe.wording import MISSING, interval, percent, signed, table

SHOWN = ("stack", "neurons", "linear", "last prompt token", "entropy", "mean entropy", "logprob", "length", "words")
HEADLINE = ("capitals", "continents", "cities", "elements", "currencies", "triviaqa")
Figures = dict[str, Any]


def render(figures: Figures) -> str:
    """The whole page."""
    parts = (
        _head,
        _goals,
        _claims,
        _held_out,
        _same_text,
        _alarms,
        _lengths,
        _curve,
        _shift,
        _sparse,
        _popularity,
        _scaling,
        _sets,
    )
    return "\n".join(part(figures) for part in parts)


def _head(figures: Figures) -> str:
    facts, probe = figures["answers"], figures["probe"]
    parts = facts["parts"]
    dealt = ", ".join(f"{name} {one['n']} ({one['right']} right)" for name, one in parts.items())
    return f"""# What the guard is worth on SmolLM2

<!-- Written by `make smollm2-report` from smollm2-report.json; edit models/smollm2/recipe/prose.py instead. -->

SmolLM2-135M-Instruct answered questions of wide domains greedily, {facts["n"]} of its answers were judged right
({facts["right"]}) or wrong by rule; those that decline are left out. No entity is in two parts: {dealt}. The probe is the one
that the training part gives: {probe["neurons"]} of {probe["of"]} neurons ({percent(probe["neurons"] / probe["of"])}),
{probe["h_neurons"]} of them with positive weight.

Intervals are 95 %, by bootstrap over entities, in brackets. AUROC is that of wrong against right answers **within a set**, and
then the mean over sets: a pooled figure would mix sets of different difficulty, and says mostly which set an answer is from.

| detector | what it reads |
| --- | --- |
| stack | neurons, highest entropy and log-probability, by a logistic regression on answers of their own |
| neurons | neurons chosen by L1, mean CETT over the last prompt token and the answer |
| linear | L2 on the 3,000 neurons that go most with being wrong |
| last prompt token | neurons chosen by L1 at the last prompt token alone, before any text exists |
| entropy, mean entropy | of the distributions that the answer's tokens were drawn from |
| logprob | mean negative log-probability of the answer's tokens |
| length | tokens of the answer |
| words | TF-IDF of question and answer and no model: what the questions alone give away |
"""


def _goals(figures: Figures) -> str:
    rows = [
        (goal, measured, MISSING if reached is None else "yes" if reached else "**no**")
        for goal, measured, reached in goals(figures)
    ]
    return "## Goals\n\n" + table("goal | measured | reached", rows)


def _claims(figures: Figures) -> str:
    rows = [(claim, said, "; ".join(found), holds) for claim, said, found, holds in claims(figures)]
    return """## The paper's claims

arXiv 2512.01797, on this model. Against it: 2607.00158 (random neurons do as well once they are many) and 2604.13068
(a probe learns the domain that it was fit on).

""" + table("claim | what would hold | measured | holds", rows)


def _aurocs(report: Figures, key: str = "auroc") -> str:
    mean = report["mean" if key == "auroc" else "mean_same_text"]
    shown = [name for name in SHOWN if name in mean]
    rows = []
    for label, one in _ordered(report["sets"]):
        if one[key]:
            amount = f"{one['n']} | {percent(one['wrong'] / one['n'])}" if key == "auroc" else f"{one['pairs']}"
            rows.append([label, *amount.split(" | "), *(interval(one[key].get(name)) for name in shown)])
    blank = ["", ""] if key == "auroc" else [""]
    if rows:
        rows.append(["**mean of sets**", *blank, *(interval(mean[name]) for name in shown)])
    if not rows:
        return f"{MISSING}: no set has enough answers.\n"
    head = "set | n | wrong" if key == "auroc" else "set | pairs"
    return table(" | ".join([head, *shown]), rows)


def _ordered(sets: Figures) -> list[tuple[str, Figures]]:
    """The headline's sets first."""
    return sorted(sets.items(), key=lambda one: (HEADLINE.index(one[0]) if one[0] in HEADLINE else 99, one[0]))


def _held_out(figures: Figures) -> str:
    held, crossed = figures["held_out"], figures.get("crossed")
    text = f"""## Detection

![Detection](smollm2-report-detection.svg)

On the test part, by fits on the training part; sets with at least ten right and ten wrong answers there. The stack is ahead of
the best of entropy, log-probability and length ({held["ahead"].get("best", MISSING)}) by
{interval(held["ahead"].get("stack - best"))}, of words by {interval(held["ahead"].get("stack - words"))}.

{_aurocs(held)}
"""
    if crossed is None:
        return text + f"Five folds over all answers: {MISSING}.\n"
    ahead = crossed["ahead"]
    return (
        text
        + f"""Small sets have few answers in the test part. So the same on **all** answers, each scored by a fit that has not
seen its entity: of five folds three teach, one fits the stack, one is scored. The stack is ahead of {ahead.get("best", MISSING)}
by {interval(ahead.get("stack - best"))}, of words by {interval(ahead.get("stack - words"))}.

{_aurocs(crossed)}
"""
    )


def _same_text(figures: Figures) -> str:
    text = """## Among answers of the same text

Pairs of a wrong and a right answer within a set whose texts are the same once the name that was asked about is taken out: what
is written there tells nothing. The share of pairs in which the wrong one scores higher; sets with at least ten pairs.

"""
    for title, report in (("Test part.", figures["held_out"]), ("All answers, five folds.", figures.get("crossed"))):
        text += f"{title}\n\n" + (_aurocs(report, "same_text") if report else f"{MISSING}.\n") + "\n"
    return text


def _alarms(figures: Figures) -> str:
    alarms = figures["alarms"]
    rows, lengths, sets = [], [], []
    for target, one in alarms["targets"].items():
        if "refused" in one:
            rows.append([f"{100 * float(target):g} %", one["refused"], "", ""])
            continue
        name = f"{100 * float(target):g} %"
        cells = (percent(one.get("false_alarms")), percent(one.get("recall")))
        rows.append([name, f"{one['threshold']:.3f}", *cells])
        lengths.append(
            [name, *(f"{percent(own.get('false_alarms'))} (of {own['right']})" for own in one["lengths"].values())]
        )
        sets.append(
            [name, *(f"{_plain(own, 'false_alarms')} / {_plain(own, 'recall')}" for own in one["sets"].values())]
        )
    kept = [one for one in alarms["targets"].values() if "sets" in one]
    text = f"""## Thresholds

Conformal, on the {alarms["right"]} right answers of the part for thresholds; what they do on the test part. ECE of the stack's
risk is {alarms["ece"]:.3f} over all. A target of .1 % needs 999 right answers.

{table("false alarms aimed at | threshold | false alarms | recall", rows)}
"""
    if kept:
        names = list(kept[0]["sets"])
        text += "By set, false alarms / recall:\n\n" + table(" | ".join(["aimed at", *names]), sets)
        text += "\n" + table("ECE | " + " | ".join(names), [["", *(f"{alarms['ece_by_set'][n]:.3f}" for n in names)]])
        text += "\nFalse alarms by length of the answer in tokens (answers end at 32 here):\n\n"
        text += table(" | ".join(["aimed at", *kept[0]["lengths"]]), lengths)
        beyond = [
            [f"{100 * float(target):g} %", name, own["n"], percent(own)]
            for target, one in alarms["targets"].items()
            for name, own in one.get("answered_by_set", {}).items()
        ]
        text += "\nOf wrong answers of sets without right ones, the share that is shown all the same:\n\n"
        text += table("aimed at | set | n | shown", beyond) if beyond else f"{MISSING}\n"
    return text


def _plain(one: Figures, name: str) -> str:
    return f"{100 * one[name]['value']:.0f} %" if name in one else MISSING


def _lengths(figures: Figures) -> str:
    one = figures.get("lengths")
    text = "## Longer answers\n\n"
    if not one:
        return text + f"Answers of several sentences: {MISSING}.\n"
    text += f"""Single questions of the test part, and two, four and eight of them in one prompt ({one["n"]} prompts), as the probe that ships
serves them: flagged at its threshold for 5 % of false alarms. An answer to several questions is right where each is answered
rightly. A window has {one["window"]} tokens; *without* counts all windows of an answer alike, *with* is what is served, where a later
window has to be more extreme (tail {one["tail"]:.2f}).

"""
    rows = [
        [name, own["right"], own["wrong"]]
        + [percent(own[what][how]) for what in ("false_alarms", "caught") for how in ("without", "with")]
        for name, own in one["bins"].items()
    ]
    title = "tokens | right | wrong | false alarms, without | with | caught, without | with"
    return text + table(title, rows)


def _curve(figures: Figures) -> str:
    curve = figures["curve"]
    sets = [name for name, _ in _ordered(curve[-1]["sets"])]
    text = """## Learning curve

So many answers of the training part, each number within the next; the stack is always fit on the same calibration part.

![Learning curve](smollm2-report-curve.svg)

"""
    for part in ("stack", "neurons"):
        rows = [
            [
                one["answers"],
                one["neurons"],
                interval(one["mean"].get(part)),
                *(_value(one["sets"][n][part]) for n in sets),
            ]
            for one in curve
        ]
        text += table(" | ".join([f"{part}: training answers", "neurons", "mean of sets", *sets]), rows) + "\n"
    return text


def _value(one: dict[str, float] | None) -> str:
    return MISSING if one is None else f"{one['value']:.3f}"


def _shift(figures: Figures) -> str:
    text = """## Away from home

Fit and calibrated on some sets alone, tested on all answers of others. *drift index*: the population stability index of risks
there against those at home, which a server watches; above .25 its alert fires.

"""
    rows, alarms = [], []
    for name, one in figures["shift"].items():
        if "too_few" in one:
            rows.append([name, one["too_few"], *[""] * 5])
            continue
        for label, own in one["report"]["sets"].items():
            cells = (interval(own["auroc"][p]) for p in ("stack", "neurons", "entropy", "logprob", "length"))
            rows.append([f"{name}: {label}", one["train"]["n"], *cells])
        at = one["alarms"]["targets"]["0.05"]
        told = at.get("refused") or percent(at.get("false_alarms"))
        recall = percent(at.get("recall")) if "refused" not in at else ""
        alarms.append(
            [
                name,
                interval(one["stack - entropy"], signed),
                told,
                recall,
                f"{one['alarms']['ece']:.3f}",
                _number(one["psi"]),
            ]
        )
    text += table("fit: tested on | training answers | stack | neurons | entropy | logprob | length", rows)
    if alarms:
        text += "\n" + table(
            "fit | stack less entropy, mean of sets | false alarms at its 5 % threshold | recall there | ECE there | drift index",
            alarms,
        )
    return text


def _sparse(figures: Figures) -> str:
    sparse = figures["sparse"]
    rows: list[list[object]] = []
    for one in sparse["rows"]:
        head = [f"{100 * one['share']:g} %", one["neurons"]]
        if "too_few" in one:
            rows.append([*head, one["too_few"], "", "", ""])
            continue
        other = one["random"]
        spread = f"{other['mean']:.3f} ({other['least']:.3f} to {other['most']:.3f}, sd {other['sd']:.3f})"
        rows.append([*head, interval(one["chosen"]), spread, interval(one["chosen - random"], signed)])
    ends = sparse["better_to"]
    draws = next((one["random"]["draws"] for one in sparse["rows"] if "random" in one), 0)
    told = "at no number" if ends is None else f"up to {ends} neurons"
    return f"""## How many neurons

AUROC (mean of sets, test part) of neurons chosen by L1 and of as many random ones in each layer, {draws} draws, all refit in the
same way: L2 on standardised CETT. Chosen ones are better than every draw, with an interval above 0, {told}.

![Neurons](smollm2-report-sparse.svg)

{table("share | neurons | chosen | random: mean (range) | chosen less random", rows)}"""


def _popularity(figures: Figures) -> str:
    one = figures.get("popularity")
    if not one or "too_few" in one:
        return f"## Risk and popularity\n\n{one['too_few'] if one else MISSING}\n"
    rows = [
        [f"{row['log10_population']:.2f}", row["n"], percent(row["right"]), percent(row["risk"])]
        for row in one["deciles"]
    ]
    return f"""## Risk and popularity

Cities by tenth of population; risk is the stack's, of fits that have not seen the city. Per factor of ten in population the share
of right answers changes by {interval(one["right_per_decade"], signed)}, the risk by {interval(one["risk_per_decade"], signed)}.

![Popularity](smollm2-report-popularity.svg)

{table("log10 of population | n | right | risk", rows)}"""


def _scaling(figures: Figures) -> str:
    one = figures.get("scaling")
    text = "## Neurons scaled\n\n"
    if not one:
        return text + f"Over-compliance, accuracy and perplexity against the neurons' scale: {MISSING}.\n"
    text += f"""The probe's neurons with positive weight, and as many random ones in each layer ({len(one["random"])} draws, mean), scaled by
alpha. *gave in*: the answer accepts what the prompt presses for. *wrong*: of plain questions.

"""
    for title, curve in (("the probe's neurons", one["h_neurons"]), ("random neurons", _averaged(one["random"]))):
        alphas = list(curve)
        labels = list(curve[alphas[0]]["sets"]) if alphas else []
        rows: list[list[object]] = [
            [label, *(percent(curve[alpha]["sets"][label]["gave_in"]) for alpha in alphas)] for label in labels
        ]
        rows.append(["perplexity", *(_number(curve[alpha].get("perplexity")) for alpha in alphas)])
        text += table(" | ".join([title, *(f"alpha {alpha}" for alpha in alphas)]), rows) + "\n"
    consistency: Figures | None = one.get("consistency")
    return text + (
        f"Five-sample self-consistency: AUROC {interval(consistency['auroc'])} on {consistency['n']} answers.\n"
        if consistency
        else f"Five-sample self-consistency: {MISSING}.\n"
    )


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def _averaged(curves: Sequence[Figures]) -> Figures:
    """The mean of several curves; its intervals reach from the lowest end to the highest."""
    found: Figures = {}
    for alpha in curves[0] if curves else ():
        sets = {}
        for label in curves[0][alpha]["sets"]:
            own = [curve[alpha]["sets"][label]["gave_in"] for curve in curves]
            middle = sum(one["value"] for one in own) / len(own)
            sets[label] = {
                "gave_in": {"value": middle, "low": min(o["low"] for o in own), "high": max(o["high"] for o in own)}
            }
        every = [curve[alpha].get("perplexity") for curve in curves]
        known = [one for one in every if one is not None]
        found[alpha] = {"sets": sets, "perplexity": sum(known) / len(known) if known else None}
    return found


def _sets(figures: Figures) -> str:
    rows: Iterable[Sequence[object]] = (
        [name, *(one[kind] for kind in ("right", "wrong", "declined", "cut")), f"{one['tokens']:.1f}"]
        for name, one in figures["answers"]["sets"].items()
    )
    return "## Answers\n\n*cut*: at 32 tokens.\n\n" + table("set | right | wrong | declined | cut | mean tokens", rows)
