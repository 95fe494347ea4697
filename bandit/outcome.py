"""From a decision's reward events to the one number that is learned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from bandit.actions import check_name
from bandit.errors import InvalidInputError

AGGREGATIONS = ("first", "last", "sum", "max", "min", "mean")
MAX_REWARDS = 64
LARGEST = 1e12
LARGEST_SUM = 1e15
YEAR = 366 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward:
    """A kind of reward event that the experiment accepts.

    Parameters
    ----------
    name
        Such as ``opened`` or ``bought``.
    bounds
        Smallest and largest value a client may report, in the reward's own unit.
    weight
        What one unit counts in the outcome; negative for costs such as unsubscribes.
    terminal
        Whether this event closes the outcome at once instead of at the window's end.

    Raises
    ------
    InvalidInputError
        If bounds are not low <= high within +-1e12, or the weight is not finite.
    """

    name: str
    bounds: tuple[float, float] = (0.0, 1.0)
    weight: float = 1.0
    terminal: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        low, high = self.bounds
        if not -LARGEST <= low <= high <= LARGEST:
            raise InvalidInputError(
                f"need -1e12 <= low <= high <= 1e12, got {self.bounds}", field="bounds"
            )
        if not abs(self.weight) * max(abs(low), abs(high)) <= LARGEST:
            raise InvalidInputError(f"{self.weight} times the bounds passes 1e12", field="weight")


class RewardEvent(NamedTuple):
    """One reported fact about a decision; times in microseconds since 1970, UTC."""

    name: str
    value: float
    occurred_at: int


@dataclass(frozen=True, kw_only=True)
class OutcomeRule:
    """How a decision's reward events become its outcome.

    Parameters
    ----------
    rewards
        The kinds of event that are accepted.
    window
        Seconds after the decision, or after its exposure, in which an event counts.
    early
        Seconds that an event, or an exposure, may seem to precede what it follows (clock skew)
        and still count.
    silence
        What a decision nobody reported on means: its outcome is the ``default``, or it has
        none and is left out (``ignore``), as when only some messages are really sent.
    default
        Outcome of silence.
    aggregation
        How the weighted values combine: first, last, sum, max, min or mean.
    exposure
        Where the window begins: at the ``decision``, which then counts as shown, or at its
        ``confirmed`` exposure. A decision whose exposure nobody confirms has no outcome.
    exposure_window
        Seconds after the decision in which its exposure counts; None is ``window``.
    late
        What becomes of an event that comes after the outcome closed, or happened after the
        window: ``ignore`` keeps it for the record, ``correct`` computes the outcome again.
    late_window
        Seconds after the window in which an event may happen and still correct; None: any.

    Raises
    ------
    InvalidInputError
        If a value is out of range or a name is repeated.
    """

    rewards: tuple[Reward, ...]
    window: float
    early: float = 60.0
    silence: str = "default"
    default: float = 0.0
    aggregation: str = "sum"
    exposure: str = "decision"
    exposure_window: float | None = None
    late: str = "ignore"
    late_window: float | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.rewards) <= MAX_REWARDS:
            raise InvalidInputError(
                f"needs 1 to {MAX_REWARDS} kinds, got {len(self.rewards)}", field="rewards"
            )
        if len(self.by_name) < len(self.rewards):
            raise InvalidInputError("a name is repeated", field="rewards")
        if not 0 < self.window <= YEAR:
            raise InvalidInputError(
                f"must be more than 0 and at most a year of seconds, got {self.window}",
                field="window",
            )
        if not 0 <= self.early <= 86_400:
            raise InvalidInputError(f"must be 0 to 86400 seconds, got {self.early}", field="early")
        if self.silence not in ("default", "ignore"):
            raise InvalidInputError(
                f"{self.silence!r} is neither default nor ignore", field="silence"
            )
        if not abs(self.default) <= LARGEST:
            raise InvalidInputError(f"must be within +-1e12, got {self.default}", field="default")
        if self.aggregation not in AGGREGATIONS:
            raise InvalidInputError(
                f"{self.aggregation!r} is none of {', '.join(AGGREGATIONS)}", field="aggregation"
            )
        self._check_exposure()
        self._check_late()

    def _check_exposure(self) -> None:
        if self.exposure not in ("decision", "confirmed"):
            raise InvalidInputError(
                f"{self.exposure!r} is neither decision nor confirmed", field="exposure"
            )
        if self.exposure_window is None:
            return
        if not self.is_confirmed:
            raise InvalidInputError(
                "goes with exposure = confirmed, and only there", field="exposure_window"
            )
        if not 0 < self.exposure_window <= YEAR:
            raise InvalidInputError(
                f"must be more than 0 and at most a year of seconds, got {self.exposure_window}",
                field="exposure_window",
            )

    def _check_late(self) -> None:
        if self.late not in ("ignore", "correct"):
            raise InvalidInputError(f"{self.late!r} is neither ignore nor correct", field="late")
        if self.late_window is None:
            return
        if not self.is_correcting:
            raise InvalidInputError("goes with late = correct, and only there", field="late_window")
        if not 0 <= self.late_window <= YEAR:
            raise InvalidInputError(
                f"must be 0 to a year of seconds, got {self.late_window}", field="late_window"
            )

    @cached_property
    def by_name(self) -> dict[str, Reward]:
        """The kinds of event by name."""
        return {reward.name: reward for reward in self.rewards}

    @property
    def range(self) -> float:
        """How far one reward can move the outcome: the widest bounds times weight, or 1."""
        widths = [abs(r.weight) * (r.bounds[1] - r.bounds[0]) for r in self.rewards]
        return max(widths) or 1.0

    @property
    def window_us(self) -> int:
        """The window in microseconds."""
        return round(self.window * 1e6)

    @cached_property
    def is_confirmed(self) -> bool:
        """Whether windows begin at confirmed exposures."""
        return self.exposure == "confirmed"

    @cached_property
    def is_correcting(self) -> bool:
        """Whether late events correct outcomes."""
        return self.late == "correct"

    @cached_property
    def exposure_us(self) -> int:
        """The time for an exposure in microseconds; 0 where none is needed."""
        if not self.is_confirmed:
            return 0
        return round((self.exposure_window or self.window) * 1e6)

    def check(self, name: str, value: float) -> None:
        """Refuse an event of an unknown kind, or a value that is not in its bounds.

        Raises
        ------
        InvalidInputError
            With the path ``name`` or ``value``.
        """
        reward = self.by_name.get(name)
        if reward is None:
            known = ", ".join(self.by_name)
            raise InvalidInputError(f"no reward {name[:64]!r}; known: {known}", field="name")
        low, high = reward.bounds
        if not low <= value <= high:  # also refuses NaN
            raise InvalidInputError(f"{value} is outside [{low}, {high}]", field="value")

    def counts(self, event: RewardEvent, start: int) -> bool:
        """Whether an event lies in the window that begins at ``start`` (microseconds)."""
        since = event.occurred_at - start
        return -round(self.early * 1e6) <= since <= self.window_us

    def may_count(self, event: RewardEvent, decided_at: int) -> bool:
        """Whether an event lies in a window that an exposure may still begin."""
        since = event.occurred_at - decided_at
        early = round(self.early * 1e6)  # twice: the exposure may seem early, and the event, too
        return -2 * early <= since <= self.exposure_us + self.window_us

    def corrects(self, event: RewardEvent, start: int) -> bool:
        """Whether an event that came late counts all the same."""
        if not self.is_correcting:
            return False
        since = event.occurred_at - start
        if since < -round(self.early * 1e6):
            return False
        return self.late_window is None or since <= self.window_us + round(self.late_window * 1e6)

    def takes(self, event: RewardEvent, start: int) -> bool:
        """Whether an event is part of the outcome, by when it happened."""
        return self.counts(event, start) or self.corrects(event, start)

    def is_exposure(self, exposed_at: int, decided_at: int) -> bool:
        """Whether an exposure at that time is one of the decision (microseconds)."""
        since = exposed_at - decided_at
        return -round(self.early * 1e6) <= since <= (self.exposure_us or self.window_us)

    def outcome(self, events: Sequence[RewardEvent], start: int) -> float | None:
        """Compute the outcome of one decision.

        Parameters
        ----------
            events
                In log order; those outside the window are left out here, unless they correct.
            start
                Where the window begins, microseconds since 1970: the decision, or its exposure.

        Returns
        -------
            The weighted aggregate; the default, or None, when nobody reported.

        Notes
        -----
            ``first`` and ``last`` go by the time of occurrence, then by log order. A sum is cut off
        at +-1e15, so that no number of events can keep an outcome from being learned.
        """
        counted = sorted((e for e in events if self.takes(e, start)), key=lambda e: e.occurred_at)
        if not counted:
            return self.default if self.silence == "default" else None
        values = [self.by_name[e.name].weight * e.value for e in counted]
        match self.aggregation:
            case "first":
                return values[0]
            case "last":
                return values[-1]
            case "max":
                return max(values)
            case "min":
                return min(values)
            case "mean":
                return math.fsum(values) / len(values)
            case _:
                return min(max(math.fsum(values), -LARGEST_SUM), LARGEST_SUM)
