"""An estimate: a number with intervals, or the reason why there is none."""

from dataclasses import dataclass

from bandit.errors import InvalidInputError
from sims.ope.intervals import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What one estimator says.

    Parameters
    ----------
    name
        One of ``estimators.ESTIMATORS``, or ``logged``: what the log itself earned.
    value
        Mean reward of a row under the policy; None if it is withheld.
    intervals
        Of the value; of a biased estimator wide enough for its bias, and none where that can not
        be told; none if it is withheld.
    standard_error
        Of the value by the delta method, by customers where the log knows them; bias is no part
        of it.
    setting
        What the estimator was set to; None if it has nothing to set.
    effective_rows
        How many rows of the policy's own log would say as much: ``(sum w)**2 / sum w**2`` of the
        weights that the estimator uses; None where it rests on the model alone.
    withheld
        Why there is no number, and what would help; None if there is one.

    caution
        Why there is no interval: the log does not say how biased the value is.

    Raises
    ------
    InvalidInputError
        If there is neither a value nor a reason, or both.
    """

    name: str
    value: float | None
    intervals: tuple[Interval, ...] = ()
    standard_error: float | None = None
    setting: float | None = None
    effective_rows: float | None = None
    withheld: str | None = None
    caution: str | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (self.withheld is None):
            raise InvalidInputError("needs a value, or a reason why there is none", field="value")
        if self.value is None and (self.intervals or self.standard_error is not None):
            raise InvalidInputError("a withheld estimate has no intervals", field="intervals")
