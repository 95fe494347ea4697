"""The decision: what was chosen, for whom, and with what probability."""

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInputError


class Group(IntEnum):
    """The traffic group of a customer; the numbers are stored and never change."""

    BANDIT = 1
    RANDOM = 2
    BASELINE = 3
    NO_CONTACT = 4


class Reason(IntEnum):
    """Why the action was chosen; the numbers are stored and never change."""

    POLICY = 1
    RANDOM_GROUP = 2
    BASELINE_GROUP = 3
    NO_CONTACT_GROUP = 4
    NO_ELIGIBLE_ACTION = 5
    PAUSED = 6
    STALE_SNAPSHOT = 7

    @property
    def is_fallback(self) -> bool:
        """Whether the declared fallback answered instead of the customer's group."""
        return self >= Reason.NO_ELIGIBLE_ACTION


class Removed(NamedTuple):
    """An action that a rule took away, and the rule's reason."""

    action: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """One choice, complete enough to be logged, replayed and reweighted.

    Attributes
    ----------
    decision_id
        Time-ordered (UUIDv7); its random part names the draw.
    action
        Index into the experiment's action space, or None: send nothing.
    propensity
        Probability, in (0, 1], that the group's policy chose ``action`` in this context;
        NaN only when propensities were switched off.
    group
        Traffic group of the customer.
    reason
        Why this action.
    snapshot_version
        The published belief that decided; 0 is the prior.
    propensities : (k,) or None
        Probability of every action, zero where not eligible.

    Raises
    ------
    InvalidInputError
        If ``propensity`` is outside (0, 1] or an index is negative.
    """

    decision_id: UUID
    action: int | None
    propensity: float
    group: Group
    reason: Reason
    snapshot_version: int
    propensities: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        p = self.propensity
        if not 0.0 < p <= 1.0 and p == p:
            raise InvalidInputError(f"must be in (0, 1], got {p}", field="propensity")
        if self.snapshot_version < 0 or (self.action is not None and self.action < 0):
            raise InvalidInputError(f"negative index in {self}")

    @property
    def is_learned_from(self) -> bool:
        """Whether its outcome trains the model: chosen by policy or at random, not declared."""
        return self.reason in (Reason.POLICY, Reason.RANDOM_GROUP)
