"""Traffic groups: who gets the bandit, and whom it is measured against."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandit.decision import Group
from bandit.errors import InvalidInputError

_FULL = 2**32
_HALF = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """Shares of the customers, laid out on 2**32 points of a keyed hash.

    ``random`` grows up from 0, ``no_contact`` up from the middle and ``baseline`` down from
    the top; ``bandit`` is the rest. So a share that grows takes customers from ``bandit``
    only, and nobody moves between the other groups.

    Parameters
    ----------
    random
        Share that gets a uniformly drawn eligible action.
    baseline
        Share that gets business as usual, the declared baseline action.
    no_contact
        Share that gets nothing.

    Raises
    ------
    InvalidInputError
        If a share is outside [0, 1], or the shares do not fit.
    """

    random: float = 0.1
    baseline: float = 0.0
    no_contact: float = 0.0

    def __post_init__(self) -> None:
        for name in ("random", "baseline", "no_contact"):
            share = getattr(self, name)
            if not 0.0 <= share <= 1.0:
                raise InvalidInputError(f"must be in [0, 1], got {share}", field=name)
        if self.random + self.baseline + self.no_contact > 1.0 + 1e-12:
            raise InvalidInputError("the shares add up to more than 1")
        crowded = self.random > 0.5 or self.baseline + self.no_contact > 0.5
        if self.no_contact > 0 and crowded:
            raise InvalidInputError(
                "with a no_contact share, random may be at most 0.5, and baseline and no_contact "
                "together at most 0.5: each keeps its half, so that nobody changes group when a "
                "share grows"
            )

    @property
    def shares(self) -> dict[Group, float]:
        """Share of every group."""
        rest = 1.0 - self.random - self.baseline - self.no_contact
        return {
            Group.BANDIT: max(rest, 0.0),
            Group.RANDOM: self.random,
            Group.BASELINE: self.baseline,
            Group.NO_CONTACT: self.no_contact,
        }

    def group(self, point: int) -> Group:
        """Give the group of a point in [0, 2**32)."""
        if point < self.random * _FULL:
            return Group.RANDOM
        if point >= _FULL - self.baseline * _FULL:
            return Group.BASELINE
        if _HALF <= point < _HALF + self.no_contact * _FULL:
            return Group.NO_CONTACT
        return Group.BANDIT

    def members(self, points: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Give ``group`` of many points."""
        at = points.astype(np.float64)  # exact
        tests = {
            Group.RANDOM: at < self.random * _FULL,
            Group.BASELINE: at >= _FULL - self.baseline * _FULL,
            Group.NO_CONTACT: (at >= _HALF) & (at < _HALF + self.no_contact * _FULL),
        }
        groups: NDArray[np.int64] = np.select(
            list(tests.values()), [int(group) for group in tests], int(Group.BANDIT)
        )
        return groups
