"""One published number beside ours, and whether ours holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A published number and ours.

    Parameters
    ----------
    what
        Problem, policy and size.
    published
        The number in the paper; None where only the order of several is published.
    source
        Where it stands.
    ours
        Mean over our runs.
    half_width
        Of a 95 % interval of that mean; 0 where nothing is random.
    low, high
        What ours must lie between, to hold.
    is_required
        Whether it has to hold; else it is shown for what it is.
    """

    what: str
    published: float | None
    source: str
    ours: float
    half_width: float
    low: float
    high: float
    is_required: bool = True

    @property
    def holds(self) -> bool:
        """Whether our number lies where it must."""
        return bool(self.low <= self.ours <= self.high)


def mean_of(runs: Sequence[float]) -> tuple[float, float]:
    """Give the mean of runs and the half-width of its 95 % interval (Student)."""
    n = len(runs)
    if n < 2:
        return float(np.mean(runs)), 0.0
    error = float(np.std(runs, ddof=1)) / n**0.5
    return float(np.mean(runs)), float(stats.t.ppf(0.975, n - 1)) * error


def reproduced(  # noqa: PLR0913  two numbers and their errors
    what: str,
    source: str,
    published: float,
    runs: Sequence[float],
    *,
    within: float,
    their_runs: int | None = None,
) -> Result:
    """Compare a protocol run again: our interval must reach to ``within`` of what is published.

    Parameters
    ----------
    their_runs
        The published number is a mean of so many runs whose error is not told: then it is taken to
        have that of as many of ours, and the interval is that of the difference. None: it is taken
        as exact, or ``within`` holds its error.
    """
    mean, half = mean_of(runs)
    within += half if their_runs is None else half * (1.0 + len(runs) / their_runs) ** 0.5
    return Result(
        what=what, published=published, source=source, ours=mean, half_width=half,
        low=published - within, high=published + within,
    )  # fmt: skip


def beaten(
    what: str, source: str, published: float, runs: Sequence[float], *, is_required: bool = True
) -> Result:
    """Compare a regret that must be lower: the whole interval below the published number."""
    mean, half = mean_of(runs)
    return Result(
        what=what, published=published, source=source, ours=mean, half_width=half,
        low=-np.inf, high=published - half, is_required=is_required,
    )  # fmt: skip
