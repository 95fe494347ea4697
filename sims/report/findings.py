"""Reports of what the gate found: the top for who decides, the rest for who wants to know why."""

from collections.abc import Sequence

import numpy as np

from bandit.spec import ExperimentSpec
from bandit.verdict import Check, Verdict
from sims.gate.logs import Judged
from sims.gate.measures import calibration, gain, regret, sample_size
from sims.gate.trial import REFERENCES, Trial
from sims.gate.verdict import Findings
from sims.report.charts import bars, layers, posterior_chart
from sims.report.drawing import spread_of
from sims.report.model import Chart, Fact, Report, Rows, Section, Series


def of_findings(findings: Findings) -> Report:
    """Give the report of a verdict."""
    verdict, spec = findings.verdict, findings.spec
    sections = [_checks(verdict)]
    for i, trial in enumerate(findings.trials):
        sections += _of_trial(spec, trial, i)
    if findings.judged is not None:
        sections.append(_of_log(findings.judged, verdict.log))
    return Report(
        title=f"Verdict on {spec.name}",
        subtitle=spec.description,
        verdict="passed" if verdict.passed else "stopped",
        headline=_headline(verdict),
        facts=_facts(spec, findings.trials),
        sections=tuple(sections),
        made_with=(
            ("Specification (SHA-256)", verdict.spec_hash),
            *(("World", world) for world in verdict.worlds),
            ("Log", verdict.log or "none"),
            (
                "Runs",
                f"{spec.gate.replications} of {spec.gate.customers:,} customers in each world",
            ),
            ("Seed", str(verdict.seed)),
            ("Engine", verdict.engine),
        ),
    )


def _headline(verdict: Verdict) -> str:
    if verdict.passed:
        return f"All {len(verdict.checks)} checks hold: the experiment may start."
    told = " ".join(f"{c.found[:1].upper()}{c.found[1:]}. {c.why}" for c in verdict.stopped_by[:3])
    more = len(verdict.stopped_by) - 3
    return told + (f" And {more} more." if more > 0 else "")


def _facts(spec: ExperimentSpec, trials: Sequence[Trial]) -> tuple[Fact, ...]:
    """Give the numbers on top, of the first world."""
    if not trials:
        return ()
    trial = trials[0]
    usual = "business as usual" if trial.has_baseline else "a uniform draw"
    lift = gain(trial, spec, 1 if trial.has_baseline else 2)
    cost = regret(trial, spec)
    needed = sample_size(trial.runs)
    paid = cost.mean > 0
    return (
        Fact(
            "Lift once learned",
            f"{lift.mean:+.1%}",
            f"against {usual}, last quarter of the run; 95 % interval {lift.low:+.1%} to "
            f"{lift.high:+.1%}",
        ),
        Fact(
            "What learning costs" if paid else "Earned while learning",
            f"{abs(cost.mean):.1%}",
            f"{'less' if paid else 'more'} than {usual} over the whole run of "
            f"{spec.gate.customers:,} customers",
        ),
        Fact(
            "Customers to plan for",
            "-" if needed is None else f"{needed:,}",
            "no random group, or nothing to show"
            if needed is None
            else "to show the lift over the random group, with a power of 80\u00a0%",
        ),
    )


def _checks(verdict: Verdict) -> Section:
    rows = [
        (
            "passed" if check.passed else "stopped",
            check.name.replace("_", " "),
            check.source,
            "-" if check.value is None else f"{check.value:.4g}",
            _limit(check),
            f"{check.found}. {check.why}",
        )
        for check in sorted(verdict.checks, key=lambda c: c.passed)
    ]
    heads = ("Result", "Check", "Where", "Value", "Limit", "What was found, and why it matters")
    return Section(
        title="Checks",
        text="Each line is measured against a limit of the specification; what stops comes first.",
        tables=(Rows(heads, tuple(rows)),),
    )


def _limit(check: Check) -> str:
    return "" if check.limit is None else f"{check.bound} {check.limit:.4g}"


def _of_trial(spec: ExperimentSpec, trial: Trial, place: int) -> list[Section]:
    end = f"-{place + 1}"
    return [
        Section(
            title=f"World {trial.world}: does it learn?",
            text=f"{len(trial.runs)} runs of {spec.gate.customers:,} customers. Every policy meets "
            "the same customers; shades are 95 % intervals over the runs.",
            charts=(_regret(trial, end), _reward(trial, end), _allocation(spec, trial, end)),
        ),
        Section(
            title=f"World {trial.world}: what it believes, and how it chooses",
            text="The belief at the end of the runs.",
            charts=(_posterior(spec, trial, end), _calibration(trial, end), _weights(trial, end)),
        ),
    ]


def _named(trial: Trial) -> list[tuple[str, int]]:
    names = [("this policy", 0), *((name, i) for i, name in enumerate(REFERENCES, 1))]
    return names if trial.has_baseline else [pair for pair in names if pair[0] != "baseline"]


def _regret(trial: Trial, end: str) -> Chart:
    earned = np.array([run.earned for run in trial.runs])
    lines = [
        spread_of(name, trial.points, earned[:, 3] - earned[:, at])
        for name, at in _named(trial)
        if name != "optimum"
    ]
    return Chart(
        name=f"regret{end}",
        title="Regret: what was missed so far",
        note="Expected outcome of the best action less that of the chosen one, summed over "
        "customers. A policy that has learned grows flat; one that never learns grows straight.",
        kind="lines",
        x_label="customers",
        y_label="outcomes missed",
        series=tuple(lines),
    )


def _reward(trial: Trial, end: str) -> Chart:
    earned = np.array([run.earned for run in trial.runs])
    first = np.concatenate([np.zeros_like(earned[:, :, :1]), earned], axis=2)
    width = np.diff(np.concatenate([[0], trial.points]))
    steps = np.diff(first, axis=2) / width
    return Chart(
        name=f"reward{end}",
        title="Reward: mean expected outcome of a customer",
        note="How far the policy is from the best that can be done, and from today's practice.",
        kind="lines",
        x_label="customers",
        y_label="outcome per customer",
        series=tuple(spread_of(n, trial.points, steps[:, at]) for n, at in _named(trial)),
    )


def _allocation(spec: ExperimentSpec, trial: Trial, end: str) -> Chart:
    got = np.sum([run.got for run in trial.runs], axis=0).astype(np.float64)
    total = np.maximum(got.sum(axis=1), 1.0)
    return Chart(
        name=f"allocation{end}",
        title="Allocation: which actions customers got",
        note="Shares of the messages sent, all groups together.",
        kind="stack",
        x_label="customers",
        y_label="share of the messages",
        series=layers(spec, trial.points.astype(float), got / total[:, None]),
        is_share=True,
    )


def _posterior(spec: ExperimentSpec, trial: Trial, end: str) -> Chart:
    looks = [run.look for run in trial.runs]
    means = np.mean([look.means.mean(axis=0) for look in looks], axis=0)
    sds = np.mean([look.sds.mean(axis=0) for look in looks], axis=0)
    return posterior_chart(spec, means, sds, end)


def _calibration(trial: Trial, end: str) -> Chart:
    _, bins = calibration([run.look for run in trial.runs])
    return Chart(
        name=f"calibration{end}",
        title="Calibration: propensities against frequencies",
        note="How often actions were to be chosen, and were. Bars are what chance allows in 95 % "
        "of cases; points belong inside of them.",
        kind="calibration",
        x_label="mean propensity",
        y_label="frequency",
        series=(
            Series(
                name="actions",
                x=tuple(b.mean for b in bins),
                y=tuple(b.frequency for b in bins),
                low=tuple(b.low for b in bins),
                high=tuple(b.high for b in bins),
            ),
        ),
        is_share=True,
    )


def _weights(trial: Trial, end: str) -> Chart:
    weights = np.concatenate([run.weights for run in trial.runs])
    return Chart(
        name=f"weights{end}",
        title="Weights: one over the propensity of what was chosen",
        note="Large weights make estimates from the log of this experiment uncertain; the largest "
        f"of {len(weights):,} is {weights.max(initial=1.0):,.1f}.",
        kind="histogram",
        x_label="weight",
        y_label="share of the choices",
        series=(bars("weights", weights),),
        is_share=True,
        is_log=True,
    )


def _of_log(judged: Judged, name: str) -> Section:
    low, high = judged.ends
    points = Series(
        name="mean outcome",
        x=(0.0, 1.0),
        y=(judged.value, judged.logged),
        low=(low, judged.logged),
        high=(high, judged.logged),
        labels=("this policy", "what was logged"),
    )
    charts = [
        Chart(
            name="log-weights",
            title="Weights of the log, towards this policy",
            note=f"{len(judged.weights):,} rows say as much as {judged.effective:,.0f} rows of the "
            "policy's own log.",
            kind="histogram",
            x_label="weight",
            y_label="share of the rows",
            series=(bars("weights", judged.weights),),
            is_share=True,
            is_log=True,
        )
    ]
    if np.isfinite(judged.value):
        charts.append(
            Chart(
                name="log-value",
                title="What the policy would have earned",
                note=f"Estimate ({judged.estimate}) with its 95 % interval, after the policy "
                "learned the earlier half of the log.",
                kind="points",
                x_label="mean outcome of a customer",
                y_label="",
                series=(points,),
            )
        )
    text = (
        f"{name.partition(' ')[0]}: the policy learned the earlier half and is judged by the rest."
    )
    if judged.reason:
        text += f" What it would have earned can not be told: {judged.reason}."
    return Section(title="The log", text=text, charts=tuple(charts))
