"""Charts that several reports share."""

import numpy as np

from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from sims.report.model import Chart, Series

SHOWN = 7
"""Actions that charts show one by one."""
LISTED = 14
LEAST = 1e-2


def action_name(spec: ExperimentSpec, action: int) -> str:
    """Give an action as people read it; factors with one level are left out."""
    levels = zip(spec.actions.levels(action), spec.actions.factors, strict=True)
    several = [level.name for level, all_of in levels if len(all_of) > 1]
    return " / ".join(several) or spec.actions.levels(action)[0].name


def layers(spec: ExperimentSpec, x: Floats, shares: Floats) -> tuple[Series, ...]:
    """Give the shares of all actions, (points, k), as layers: the largest one by one."""
    order = np.argsort(-shares.sum(axis=0), kind="stable")
    shown, rest = order[:SHOWN], order[SHOWN:]
    places = tuple(x.astype(float).tolist())
    found = [
        Series(name=action_name(spec, a), x=places, y=tuple(shares[:, a].tolist()))
        for a in shown.tolist()
    ]
    if len(rest):
        others = shares[:, rest].sum(axis=1)
        found.append(Series(name=f"{len(rest)} others", x=places, y=tuple(others.tolist())))
    return tuple(found)


def posterior_chart(spec: ExperimentSpec, means: Floats, sds: Floats, end: str) -> Chart:
    """Give what is believed of every action, from its mean score and spread, (k,)."""
    order = np.argsort(-means, kind="stable")[:LISTED]
    mean, half = means[order], 1.96 * sds[order]
    unit = "log-odds" if spec.policy.posterior == "logistic" else "outcome"
    return Chart(
        name=f"posterior{end}",
        title="Posterior: what it believes of every action",
        note="Mean score over customers with its 95 % credible interval, exploration left out; "
        f"the best {len(order)} of {len(means)} actions.",
        kind="points",
        x_label=f"score ({unit})",
        y_label="",
        series=(
            Series(
                name="belief",
                x=tuple(float(i) for i in range(len(order))),
                y=tuple(mean.tolist()),
                low=tuple((mean - half).tolist()),
                high=tuple((mean + half).tolist()),
                labels=tuple(action_name(spec, a) for a in order.tolist()),
            ),
        ),
    )


def bars(name: str, values: Floats) -> Series:
    """Give a histogram of positive values by their size; zeros are left to a note.

    What is smaller than ``LEAST`` counts as that: only large weights matter.
    """
    positive = values[values > 0]
    top = max(float(positive.max(initial=1.0)), 2.0)
    low = max(min(float(positive.min(initial=1.0)), 0.5), LEAST)
    edges = np.geomspace(low, top * 1.0001, 31)
    counts, _ = np.histogram(np.maximum(positive, low), edges)
    share = counts / max(len(values), 1)
    return Series(name=name, x=tuple(edges.tolist()), y=tuple(share.tolist()))
