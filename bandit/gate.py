"""The limits that an experiment must keep in simulation before it may start.

They are part of the specification: who changes a limit changes the specification, and a verdict
on the one before is void. ``sims.gate`` measures; this only declares.
"""

import math
from dataclasses import dataclass

from bandit.errors import InvalidInputError

_SHARES = ("segment_regret", "smallest_segment", "starvation", "calibration", "leak")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What the proof before the traffic must show.

    Parameters
    ----------
    regret
        Most that learning may cost: share of the baseline's reward that the policy may earn less
        than the baseline, over a whole run.
    segment_regret
        The same within the worst segment of customers.
    smallest_segment
        Share of the customers that makes a segment large enough to be looked at.
    effective_sample
        Least effective sample size of the log, weighted towards the policy.
    calibration
        Least chance of frequencies this far from the logged propensities, if these are right.
    starvation
        Least that every eligible action gets, in parts of an even share.
    leak
        Most that one context field alone may tell of the outcome: area under the ROC curve.
    customers, replications
        Length and number of the simulated runs.

    Raises
    ------
    InvalidInputError
        If a limit is out of range.
    """

    regret: float = 0.05
    segment_regret: float = 0.2
    smallest_segment: float = 0.05
    effective_sample: float = 100.0
    calibration: float = 0.0001
    starvation: float = 0.02
    leak: float = 0.95
    customers: int = 10_000
    replications: int = 20

    def __post_init__(self) -> None:
        if not 0.0 <= self.regret <= 1e6:
            raise InvalidInputError(f"must be in [0, 1000000], got {self.regret}", field="regret")
        for name in _SHARES:
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise InvalidInputError(f"must be in [0, 1], got {share}", field=name)
        if not (math.isfinite(self.effective_sample) and self.effective_sample >= 0.0):
            raise InvalidInputError(
                f"must not be negative, got {self.effective_sample}", field="effective_sample"
            )
        if not 500 <= self.customers <= 10_000_000:
            raise InvalidInputError(
                f"must be in [500, 10000000], got {self.customers}", field="customers"
            )
        if not 5 <= self.replications <= 1_000:
            raise InvalidInputError(
                f"must be in [5, 1000], got {self.replications}: an interval needs five runs",
                field="replications",
            )
