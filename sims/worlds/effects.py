"""What makes customers respond: declared effects, random weights from a seed, the wheel."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bandit.errors import InvalidInputError
from sims.worlds.traits import STRICT

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

Wanted = str | bool | tuple[float, float]
"""What a condition asks of a field: to equal a category or flag, or to lie in a range."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What adds to the log-odds of a response, or to its mean value if it is linear.

    Parameters
    ----------
    adds
        Log-odds, or the unit of the value.
    variant, channel, slot
        Levels it holds for; None: any.
    segment
        Segment it holds for; None: any.
    when
        Context it holds for: a category or flag to equal, or (low, high) to lie in, high
        excluded; every entry must hold, and a missing value holds for none.
    slope
        A number, flag or cyclic field that it is multiplied by: a number mapped to [-1, 1] by
        its declared bounds and scale, as the model sees it; a missing value counts 0.
    hours
        Hours of the day (UTC) it holds for, from and until; from 22 until 6 is the night.
    weekdays
        Days of the week it holds for, ``mon`` to ``sun``; None: any.
    begins, ends
        Days since the start between which it holds: a shock.
    per_day
        How much ``adds`` changes a day.
    walk
        Standard deviation of the random walk of ``adds`` in a day; anew in each replication.

    Raises
    ------
    InvalidInputError
        If a value is not finite or a range is empty.
    """

    __pydantic_config__ = STRICT

    adds: float
    variant: str | None = None
    channel: str | None = None
    slot: str | None = None
    segment: str | None = None
    when: Mapping[str, Wanted] | None = None
    slope: str | None = None
    hours: tuple[float, float] | None = None
    weekdays: tuple[str, ...] | None = None
    begins: float | None = None
    ends: float | None = None
    per_day: float = 0.0
    walk: float = 0.0

    def __post_init__(self) -> None:
        for name in ("adds", "per_day", "walk"):
            if not math.isfinite(getattr(self, name)):
                raise InvalidInputError("must be finite", field=name)
        if self.walk < 0:
            raise InvalidInputError(f"must be >= 0, got {self.walk}", field="walk")
        for name, wanted in (self.when or {}).items():
            if isinstance(wanted, tuple) and not wanted[0] < wanted[1]:
                raise InvalidInputError(f"need low < high, got {wanted}", field=f"when.{name}")
        if self.hours is not None and not all(0.0 <= hour <= 24.0 for hour in self.hours):
            raise InvalidInputError(f"must be in [0, 24], got {self.hours}", field="hours")
        for day in self.weekdays or ():
            if day not in WEEKDAYS:
                raise InvalidInputError(
                    f"{day!r} is none of {', '.join(WEEKDAYS)}", field="weekdays"
                )
        check_span(self.begins, self.ends, "ends")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """Random weights, normal with the declared standard deviations.

    Parameters
    ----------
    seed
        Draws the weights.
    levels
        Of each level of each factor.
    pairs
        Of each pair of levels of two factors.
    actions
        Of each action.
    context
        Of each feature of the context with each level.
    pair_context
        Of each feature of the context with each pair of levels.
    action_context
        Of each feature of the context with each action.
    each_replication
        Whether every replication has weights of its own.
    turn
        Days in which the weights turn into others; None: they stay.

    Raises
    ------
    InvalidInputError
        If a scale is negative or not finite, or nothing is random.

    Notes
    -----
    The features are those of the engine's encoder without intercept: numbers in [-1, 1], flags,
    one column a category level, sine and cosine. Weights that turn are
    ``w0 cos(a) + w1 sin(a)`` with ``a = (pi / 2) days / turn``: always normal with the declared
    standard deviation, and after ``turn`` days independent of the first.
    """

    __pydantic_config__ = STRICT

    seed: int = 0
    levels: float = 0.0
    pairs: float = 0.0
    actions: float = 0.0
    context: float = 0.0
    pair_context: float = 0.0
    action_context: float = 0.0
    each_replication: bool = False
    turn: float | None = None

    def __post_init__(self) -> None:
        names = ("levels", "pairs", "actions", "context", "pair_context", "action_context")
        for name in names:
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InvalidInputError("must be finite and >= 0", field=name)
        if not any(getattr(self, name) for name in names):
            raise InvalidInputError(f"nothing is random: give one of {', '.join(names)}")
        if self.seed < 0:
            raise InvalidInputError(f"must be >= 0, got {self.seed}", field="seed")
        if self.turn is not None and not 0.0 < self.turn < math.inf:
            raise InvalidInputError(f"must be positive, got {self.turn}", field="turn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """The wheel bandit: one context in a hundred or so makes another action far better.

    The context is uniform in the unit disc. Inside of radius ``delta`` the fifth action pays
    ``safe`` and the others ``low``; outside, the action of the quadrant pays ``high``.

    Parameters
    ----------
    delta
        Radius in (0, 1).
    fields
        The two numbers of the context.
    safe, low, high
        Mean values.
    sd
        Standard deviation of all values but ``high``.
    high_sd
        Standard deviation of ``high``.

    Raises
    ------
    InvalidInputError
        If a value is out of range.

    Notes
    -----
    Source: Riquelme, Tucker & Snoek, Deep Bayesian Bandits Showdown, ICLR 2018, section 5.4.
    """

    __pydantic_config__ = STRICT

    delta: float
    fields: tuple[str, str] = ("x", "y")
    safe: float = 1.2
    low: float = 1.0
    high: float = 50.0
    sd: float = 0.05
    high_sd: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 < self.delta < 1.0:
            raise InvalidInputError(f"must be in (0, 1), got {self.delta}", field="delta")
        if self.fields[0] == self.fields[1]:
            raise InvalidInputError("needs two fields", field="fields")
        for name in ("safe", "low", "high"):
            if not math.isfinite(getattr(self, name)):
                raise InvalidInputError("must be finite", field=name)
        for name in ("sd", "high_sd"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InvalidInputError("must be finite and >= 0", field=name)


def check_span(begin: float | None, end: float | None, name: str) -> None:
    """Refuse a span of days that is empty or not finite.

    Raises
    ------
    InvalidInputError
        With ``name`` as the path.
    """
    for value in (begin, end):
        if value is not None and not math.isfinite(value):
            raise InvalidInputError("must be a finite number of days", field=name)
    if begin is not None and end is not None and not begin < end:
        raise InvalidInputError(f"must be after {begin}, got {end}", field=name)
