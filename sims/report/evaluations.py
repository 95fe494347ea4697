"""Reports of evaluations: what policies would have earned on a log, and whether to believe it."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from sims.ope.estimate import Estimate
from sims.ope.evaluate import Evaluation
from sims.ope.intervals import Interval
from sims.report.charts import action_name, bars, posterior_chart
from sims.report.model import Chart, Fact, Report, Rows, Section, Series

READ_FIRST = ("dr", "sndr", "snips", "ips")
"""Estimates to read, the first that there is."""


class Belief(NamedTuple):
    """What a policy believes of every action: mean score and spread, (k,)."""

    means: Floats
    sds: Floats


def of_evaluations(
    spec: ExperimentSpec,
    found: Mapping[str, Evaluation],
    *,
    beliefs: Mapping[str, Belief] | None = None,
    notes: Sequence[str] = (),
    made_with: Sequence[tuple[str, str]] = (),
) -> Report:
    """Give the report of the evaluations of some policies on one log.

    Parameters
    ----------
    found
        By the name of the policy.
    beliefs
        By the name of the policy, where there is a snapshot.
    notes
        Sentences about the log.
    made_with
        Names and values of what it was made with.
    """
    sections = [_overview(found, notes)]
    for place, (name, one) in enumerate(found.items(), 1):
        belief = (beliefs or {}).get(name)
        sections.append(_policy(spec, name, one, belief, f"-{place}"))
    sections.append(_log(spec, next(iter(found.values()))))
    return Report(
        title=f"Policies on a log of {spec.name}",
        subtitle=spec.description,
        headline=_headline(found),
        facts=_facts(found),
        sections=tuple(sections),
        made_with=tuple(made_with),
    )


def _read(one: Evaluation) -> str | None:
    """Give the name of the estimate to read."""
    for wanted in READ_FIRST:
        for name, estimate in one.estimates.items():
            if name.partition(":")[0] == wanted and estimate.value is not None:
                return name
    return None


def _headline(found: Mapping[str, Evaluation]) -> str:
    values = {}
    for name, one in found.items():
        read = _read(one)
        if read is not None:
            values[name] = one[read].value or 0.0
    if not values:
        return "No policy can be evaluated on this log; the reasons are below."
    best = max(values, key=lambda name: values[name])
    logged = next(iter(found.values()))["logged"].value
    told = f"Policy {best} would have earned {values[best]:.4g} a row"
    told += "" if logged is None else f"; what was sent earned {logged:.4g}"
    missing = [name for name in found if name not in values]
    if missing:
        told += f". Withheld: {', '.join(missing)}"
    return f"{told}."


def _facts(found: Mapping[str, Evaluation]) -> tuple[Fact, ...]:
    facts = []
    for name, one in list(found.items())[:4]:
        read = _read(one)
        if read is None:
            facts.append(Fact(name, "withheld", "see why below"))
            continue
        estimate = one[read]
        ends = "; ".join(map(_told, estimate.intervals))
        meaning = f"by {read}; {ends or 'no interval'}"
        facts.append(Fact(name, f"{estimate.value:.4g}", meaning))
    return tuple(facts)


def _told(interval: Interval) -> str:
    return f"{interval.low:.4g} to {interval.high:.4g} ({_kind(interval.kind)})"


def _kind(kind: str) -> str:
    return kind.replace("_", " ")


def _overview(found: Mapping[str, Evaluation], notes: Sequence[str]) -> Section:
    named = [(name, read) for name, one in found.items() if (read := _read(one)) is not None]
    first = next(iter(found.values()))
    text = " ".join(f"{note[:1].upper()}{note[1:]}." for note in (*notes, first.why) if note)
    if not named:
        return Section(title="The policies beside each other", text=text)
    shown = {f"{name} ({read})": found[name][read] for name, read in named}
    if first["logged"].value is not None:
        shown["what was logged"] = first["logged"]
    chart = Chart(
        name="values",
        title="What each policy would have earned",
        note="Mean outcome of a row with its intervals, by the estimate in brackets. Decide which "
        "estimate to read before you look.",
        kind="points",
        x_label="mean outcome of a row",
        y_label="",
        series=_points(shown),
    )
    return Section(title="The policies beside each other", text=text, charts=(chart,))


_ROLES = {
    "student": "one look",
    "student and bias": "one look",
    "stabilised": "one look",
    "bca": "one look, bootstrap",
    "importance_betting": "any number of looks",
    "mixture_sequence": "any number of looks",
}


def _points(shown: Mapping[str, Estimate]) -> tuple[Series, ...]:
    """Give estimates with a series for every use of intervals, and one for those without any."""
    labels = tuple(shown)
    found: dict[str, dict[str, Interval]] = {}
    for name, one in shown.items():
        for interval in one.intervals:
            found.setdefault(_ROLES[interval.kind], {})[name] = interval
    bare = [name for name, one in shown.items() if not one.intervals]
    series = [
        Series(
            name=role,
            x=tuple(float(i) for i in range(len(shown))),
            y=tuple(_value(shown[n]) if n in ends else math.nan for n in labels),
            low=tuple(ends[n].low if n in ends else math.nan for n in labels),
            high=tuple(ends[n].high if n in ends else math.nan for n in labels),
            labels=labels,
        )
        for role, ends in found.items()
    ]
    if bare:
        series.append(
            Series(
                name="no interval",
                x=tuple(float(i) for i in range(len(shown))),
                y=tuple(_value(shown[n]) if n in bare else math.nan for n in labels),
                labels=labels,
            )
        )
    return tuple(series)


def _value(one: Estimate) -> float:
    return math.nan if one.value is None else one.value


def _policy(
    spec: ExperimentSpec, name: str, one: Evaluation, belief: Belief | None, end: str
) -> Section:
    charts = []
    drawn = _estimates(one, end)
    if drawn is not None:
        charts.append(drawn)
    charts.append(_weights(one, end))
    if belief is not None:
        charts.append(posterior_chart(spec, belief.means, belief.sds, end))
    reasons = dict.fromkeys(e.withheld for e in one.estimates.values() if e.withheld)
    held = "".join(f" Withheld: {why}." for why in reasons)
    told = one.diagnostics
    return Section(
        title=f"Policy {name}",
        text=f"{told.rows:,} rows say as much as {told.effective_rows:,.0f} rows of its own log."
        f"{held}",
        tables=(_table(one), _diagnostics(one)),
        charts=tuple(charts),
    )


def _table(one: Evaluation) -> Rows:
    rows = []
    for estimate in one.estimates.values():
        ends = "; ".join(
            f"{i.low:.4g} to {i.high:.4g} ({_kind(i.kind)})" for i in estimate.intervals
        )
        rows.append(
            (
                estimate.name,
                "withheld" if estimate.value is None else f"{estimate.value:.4g}",
                ends or "-",
                "-" if estimate.effective_rows is None else f"{estimate.effective_rows:,.0f}",
                "-" if estimate.setting is None else f"{estimate.setting:.3g}",
                estimate.withheld or estimate.caution or "",
            )
        )
    heads = ("Estimate", "Value", "Intervals", "Effective rows", "Set to", "Caution")
    return Rows(heads, tuple(rows))


def _diagnostics(one: Evaluation) -> Rows:
    found = one.diagnostics
    rows = [
        ("Effective rows", f"{found.effective_rows:,.0f} of {found.rows:,}"),
        ("Largest weight", f"{found.largest_weight:,.3g}, {found.largest_share:.2%} of all"),
        ("Mean weight", f"{found.mean_weight:.4f}, must be 1 (p = {found.mean_weight_p:.2g})"),
        ("Policy on actions never logged", f"{found.unsupported:.2%}"),
    ]
    if not math.isnan(found.calibration_p):
        rows.append(("Propensities are right", f"p = {found.calibration_p:.2g}"))
    if found.sample_ratio_p is not None and not math.isnan(found.sample_ratio_p):
        rows.append(("Groups are as declared", f"p = {found.sample_ratio_p:.2g}"))
    rows += [(f"Left out: {why}", f"{count:,}") for why, count in found.excluded.items()]
    return Rows(("Diagnostic", "Found"), tuple(rows))


def _estimates(one: Evaluation, end: str) -> Chart | None:
    """Draw every estimate that is not withheld."""
    shown = {e.name: e for e in one.estimates.values() if e.value is not None}
    if not shown:
        return None
    return Chart(
        name=f"estimates{end}",
        title="Estimates",
        note="Those without a line have no interval. Estimates far from each other mean a poor "
        "model, or a few large weights.",
        kind="points",
        x_label="mean outcome of a row",
        y_label="",
        series=_points(shown),
    )


def _weights(one: Evaluation, end: str) -> Chart:
    weights = next(iter(one.columns.weighed.values())).weights
    zero = float(np.mean(weights == 0.0))
    return Chart(
        name=f"weights{end}",
        title="Weights: probability under the policy over that which was logged",
        note="Rows far to the right decide the estimate."
        + (f" {zero:.1%} of the rows have weight 0 and are not drawn." if zero else ""),
        kind="histogram",
        x_label="weight",
        y_label="share of the rows",
        series=(bars("weights", weights),),
        is_share=True,
        is_log=True,
    )


def _log(spec: ExperimentSpec, one: Evaluation) -> Section:
    found = [row for row in one.diagnostics.calibration if row.chosen]
    if not found:
        return Section(title="The log", text="No action was chosen often enough to be tested.")
    is_bin = found[0].action < 0
    chart = Chart(
        name="calibration",
        title="Calibration: propensities against how often actions were chosen",
        note="Bars are 95 % intervals; points belong on the diagonal.",
        kind="calibration",
        x_label="logged propensity",
        y_label="share of the rows that chose it",
        series=(
            Series(
                name="bins" if is_bin else "actions",
                x=tuple(row.propensity for row in found),
                y=tuple(row.share for row in found),
                low=tuple(row.low for row in found),
                high=tuple(row.high for row in found),
                labels=()
                if is_bin
                else tuple(
                    action_name(spec, row.action)
                    + (f" at {row.position}" if row.position > 0 else "")
                    for row in found
                ),
            ),
        ),
        is_share=True,
    )
    return Section(
        title="The log",
        text="Everything rests on the propensities it holds.",
        charts=(chart,),
    )
