"""How much one context field alone tells of the outcome, on rows it was not fitted to."""

import numpy as np

from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.spec import ExperimentSpec
from bandit.verdict import Check

BINS = 20
LEAST = 20
"""Rows with, and without, a high outcome that are needed to say anything."""


def check_leaks(spec: ExperimentSpec, rows: Floats, rewards: Floats, source: str) -> Check:
    """Check that no field predicts the outcome near-perfectly.

    Notes
    -----
    Every field is cut into bins; the mean outcome of each bin in the even rows is the prediction
    for the odd ones, and its area under the ROC curve tells high outcomes from others there.
    """
    high = rewards > rewards.mean() if len(rewards) else np.zeros(0, np.bool_)
    worst, name = 0.5, ""
    enough = _is_enough(high[0::2]) and _is_enough(high[1::2])
    if enough:
        for column, field in enumerate(spec.context):
            found = _area(rows[:, column], high, BINS if field.kind != "category" else None)
            if found > worst:
                worst, name = found, field.name
    told = f"{name!r} alone predicts the outcome: area under the ROC curve {worst:.3f}"
    if not name:
        told = "no field predicts the outcome" if enough else "too few outcomes to tell"
    return Check.at_most(
        "leak",
        source,
        worst,
        spec.gate.leak,
        found=told,
        why="What predicts the outcome almost perfectly is usually a trace of the outcome itself: "
        "it will not be known when a customer is decided for.",
    )


def _is_enough(high: Bools) -> bool:
    return bool(min(high.sum(), (~high).sum()) >= LEAST)


def _area(values: Floats, high: Bools, most: int | None) -> float:
    """Give the area under the ROC curve of one field, on the rows it was not fitted to."""
    places = _bins(values, most)
    size = int(places.max()) + 1
    fitted, tested = slice(0, None, 2), slice(1, None, 2)
    counts = np.bincount(places[fitted], minlength=size)
    hits = np.bincount(places[fitted], weights=high[fitted], minlength=size)
    mean = high[fitted].mean()
    scores = ((hits + mean) / (counts + 1.0))[places[tested]]
    _, order, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[order]  # equal scores share a rank
    positive = high[tested]
    n, m = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def _bins(values: Floats, most: int | None) -> Ints:
    """Give the bin of every value: itself where there are at most ``most``, else of equal counts.

    The numbers of a category's levels have no order, so these are never put together.
    """
    missing = np.isnan(values)
    known = np.unique(values[~missing])
    if most is None or len(known) <= most:
        places = np.searchsorted(known, values) + 1
    else:
        cuts = np.unique(np.quantile(values[~missing], np.linspace(0, 1, BINS + 1)[1:-1]))
        places = np.searchsorted(cuts, values, side="right") + 1
    return np.where(missing, 0, places).astype(np.int64)
