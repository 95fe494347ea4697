"""Reports of rollouts: what policies cost and earn, who gets what, and how soon it is seen."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from sims.report.charts import layers
from sims.report.model import Chart, Fact, Report, Rows, Section, Series
from sims.rollouts import Estimate, Published, Rollout, detection
from sims.rollouts.plan import BASELINE, UNIFORM

REFERENCES = (BASELINE, UNIFORM)


def of_rollout(found: Rollout) -> Report:
    """Give the report of a rollout."""
    plan, spec = found.plan, found.plan.spec
    sections = [
        _figures(found),
        Section(
            title="Does it learn?",
            text="Every policy meets the same customers. Shades are 95 % intervals over the "
            "replications.",
            charts=(_regret(found), _reward(found), *_lift(found), _best(found)),
        ),
        Section(
            title="Who gets what?",
            text="Shares of the customers since the checkpoint before, mean over replications.",
            charts=_allocations(found),
        ),
    ]
    if plan.replications > 1:
        sections.append(_detections(found))
    return Report(
        title=f"Simulation of {spec.name}",
        subtitle=spec.description,
        headline=_headline(found),
        facts=_facts(found),
        sections=tuple(sections),
        made_with=(
            ("Customers", f"{plan.customers:,} for every policy"),
            ("Replications", str(plan.replications)),
            ("Learning", _learning(found)),
            ("Seed", str(plan.seed)),
        ),
    )


def _own(found: Rollout) -> list[str]:
    """Give the policies that are asked about."""
    return [label for label in found.labels if label not in REFERENCES] or list(found.labels)


def _reference(found: Rollout) -> str:
    return BASELINE if BASELINE in found.labels else UNIFORM


def _learning(found: Rollout) -> str:
    how = found.plan.learning
    if isinstance(how, Published):
        return f"published every {how.outcomes:,} outcomes or {how.seconds:,.6g} s"
    return "every outcome at once, when it is due"


def _best_policy(found: Rollout) -> str:
    ends = {label: found.estimate("value", label)[-1].mean for label in _own(found)}
    return max(ends, key=lambda label: ends[label])


def _headline(found: Rollout) -> str:
    best, against = _best_policy(found), _reference(found)
    lift = found.lift(best, against)[-1]
    if math.isnan(lift.mean):
        return ""
    sure = "" if math.isnan(lift.low) else f" ({lift.low:+.1%} to {lift.high:+.1%})"
    of = "Of the policies compared" if len(_own(found)) > 1 else "Over all customers"
    return f"{of}, {best} earns {lift.mean:+.1%}{sure} against {against}, learning included."


def _facts(found: Rollout) -> tuple[Fact, ...]:
    best, against = _best_policy(found), _reference(found)
    regret, lift = found.estimate("regret", best)[-1], found.lift(best, against)[-1]
    share = found.estimate("best_share", best)[-1]
    facts = [
        Fact("Lift", _show(lift, "{:+.1%}"), f"of {best} on {against}; {_ends(lift, '{:+.1%}')}"),
        Fact("Regret", _show(regret, "{:,.0f}"), f"outcomes missed by {best}, all customers"),
        Fact("Best action", _show(share, "{:.0%}"), f"of the customers of {best} got one"),
    ]
    if found.plan.replications > 1:
        needed = detection(found, best, against).customers_for(0.8)
        facts.append(
            Fact(
                "Customers to plan for",
                "-" if needed is None else f"{needed:,}",
                f"of each arm, until 8 of 10 tests see {best} above {against}"
                if needed is not None
                else f"8 of 10 tests do not see {best} above {against} by the end",
            )
        )
    return tuple(facts)


def _figures(found: Rollout) -> Section:
    rows = [
        (
            line.policy,
            *(
                _with_half(figure, form)
                for figure, form in (
                    (line.regret, "{:,.1f}"),
                    (line.reward, "{:.4f}"),
                    (line.best_share, "{:.1%}"),
                    (line.lift_baseline, "{:+.1%}"),
                    (line.lift_uniform, "{:+.1%}"),
                )
            ),
        )
        for line in found.lines(only_last=True)
    ]
    heads = ("Policy", "Regret", "Reward", "Best action", "Lift on baseline", "Lift on uniform")
    return Section(
        title="At the end",
        text="Means with half of their 95 % interval over replications. Lift is of the expected "
        "outcome.",
        tables=(Rows(heads, tuple(rows)),),
    )


def _show(figure: Estimate, form: str) -> str:
    return "-" if math.isnan(figure.mean) else form.format(figure.mean)


def _ends(figure: Estimate, form: str) -> str:
    if math.isnan(figure.low):
        return "one replication has no interval"
    return f"95 % interval {form.format(figure.low)} to {form.format(figure.high)}"


def _with_half(figure: Estimate, form: str) -> str:
    if math.isnan(figure.mean) or math.isnan(figure.low):
        return _show(figure, form)
    half = form.format(figure.high - figure.mean).removeprefix("+")
    return f"{form.format(figure.mean)} ± {half}"


def _line(name: str, x: Sequence[int], figures: Sequence[Estimate]) -> Series | None:
    """Give a line with its band; None where there is nothing to draw."""
    kept = [(float(n), f) for n, f in zip(x, figures, strict=True) if not math.isnan(f.mean)]
    if not kept:
        return None
    has_band = not any(math.isnan(f.low) for _, f in kept)
    return Series(
        name=name,
        x=tuple(n for n, _ in kept),
        y=tuple(f.mean for _, f in kept),
        low=tuple(f.low for _, f in kept) if has_band else (),
        high=tuple(f.high for _, f in kept) if has_band else (),
    )


def _lines(
    found: Rollout, labels: Sequence[str], figures: Callable[[str], list[Estimate]]
) -> tuple[Series, ...]:
    made = [_line(label, found.plan.checkpoints, figures(label)) for label in labels]
    return tuple(one for one in made if one is not None)


def _regret(found: Rollout) -> Chart:
    return Chart(
        name="regret",
        title="Regret: what was missed so far",
        note="Expected outcome of the best action less that of the chosen one, summed over "
        "customers. A policy that has learned grows flat; one that never learns grows straight.",
        kind="lines",
        x_label="customers",
        y_label="outcomes missed",
        series=_lines(found, found.labels, lambda label: found.estimate("regret", label)),
    )


def _reward(found: Rollout) -> Chart:
    return Chart(
        name="reward",
        title="Reward: mean outcome of a customer so far",
        note="Of the customers of whom something was heard, noise included.",
        kind="lines",
        x_label="customers",
        y_label="outcome per customer",
        series=_lines(found, found.labels, lambda label: found.estimate("reward", label)),
    )


def _lift(found: Rollout) -> tuple[Chart, ...]:
    against = _reference(found)
    labels = [label for label in found.labels if label != against]
    series = _lines(found, labels, lambda label: found.lift(label, against))
    if not series:
        return ()
    chart = Chart(
        name="lift",
        title=f"Lift on {against}, so far",
        note="Mean expected outcome relative to the reference on the same customers, less one. "
        "What learning costs is in it: above zero it has paid for itself.",
        kind="lines",
        x_label="customers",
        y_label="lift",
        series=series,
        is_share=True,
    )
    return (chart,)


def _best(found: Rollout) -> Chart:
    return Chart(
        name="best",
        title="Share of the customers who got a best action",
        note="So far. A policy without exploration may settle below one, and stay there.",
        kind="lines",
        x_label="customers",
        y_label="share of customers",
        series=_lines(found, found.labels, lambda label: found.estimate("best_share", label)),
        is_share=True,
    )


def _allocations(found: Rollout) -> tuple[Chart, ...]:
    table = found.allocation()
    points = np.array(found.plan.checkpoints)
    shape = (len(found.labels), len(points), found.plan.spec.actions.size)
    shares = table["share"].to_numpy().reshape(shape)
    return tuple(
        Chart(
            name=f"allocation-{place + 1}",
            title=f"Allocation by {label}",
            note="Which actions customers got; what is missing at the top got nothing.",
            kind="stack",
            x_label="customers",
            y_label="share of customers",
            series=layers(found.plan.spec, points, shares[found.labels.index(label)]),
            is_share=True,
        )
        for place, label in enumerate(_own(found))
    )


def _detections(found: Rollout) -> Section:
    against = _reference(found)
    arms = {label: detection(found, label, against) for label in found.labels if label != against}
    sees = tuple(
        Series(
            name=label,
            x=tuple(float(s.customers) for s in one.seen),
            y=tuple(s.better for s in one.seen),
        )
        for label, one in arms.items()
    )
    rows = [
        (
            label,
            _count(one.customers_for(0.8)),
            _count(one.median),
            f"{one.seen[-1].better:.0%} better, {one.seen[-1].worse:.0%} worse",
        )
        for label, one in arms.items()
    ]
    heads = ("Policy", "Power 80 %", "Looking any time", "Seen at the end")
    chart = Chart(
        name="detection",
        title=f"Share of the tests that see a policy above {against}",
        note="A test of this many customers in each arm, at one look. At 80 % it is large enough.",
        kind="lines",
        x_label="customers of each arm",
        y_label="share of tests",
        series=sees,
        is_share=True,
    )
    return Section(
        title="How soon is it seen?",
        text="Every replication is a test of two arms. Power 80 %: customers of each arm after "
        "which 8 of 10 tests see it. Looking any time: the median of when a confidence sequence "
        "sees it, at however many looks. -: not by then.",
        tables=(Rows(heads, tuple(rows)),),
        charts=(chart,),
    )


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
