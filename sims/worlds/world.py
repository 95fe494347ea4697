"""A world, declared: who comes and when, what they think of every action, what we hear of it.

``docs/reference/worlds.md`` tells every field. A world is checked twice: by itself when it is
made, and against the experiment it is used with (``sims.worlds.matching``).
"""

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime

from bandit.errors import InvalidInputError
from sims.worlds.effects import Effect, Generated, Wheel, check_span
from sims.worlds.traits import STRICT, Segment, Trait, check_once, check_share, check_weights

RESPONSES = ("logistic", "linear", "wheel")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """When customers come.

    Parameters
    ----------
    per_hour
        Visits an hour, in the mean over a week.
    spacing
        ``random`` (a Poisson process) or ``even``.
    start
        First moment, ISO 8601; without an offset it is UTC. Days are counted from here.
    hours
        How busy each hour of the day is, 24 weights; empty: all alike.
    weekdays
        How busy each day of the week is, Monday first, 7 weights; empty: all alike.
    customers
        How many different customers there are; each visit is that of a random one. None: every
        visit is a new customer's.

    Raises
    ------
    InvalidInputError
        If a value is out of range.
    """

    __pydantic_config__ = STRICT

    per_hour: float = 3_600.0
    spacing: str = "random"
    start: str = "2026-01-05T00:00:00+00:00"
    hours: tuple[float, ...] = ()
    weekdays: tuple[float, ...] = ()
    customers: int | None = None

    def __post_init__(self) -> None:
        if not 1e-6 <= self.per_hour <= 1e9:
            raise InvalidInputError(
                f"must be in [1e-6, 1e9], got {self.per_hour}", field="per_hour"
            )
        if self.spacing not in ("random", "even"):
            raise InvalidInputError(f"{self.spacing!r} is neither random nor even", field="spacing")
        for name, length in (("hours", 24), ("weekdays", 7)):
            weights = getattr(self, name)
            if weights and len(weights) != length:
                raise InvalidInputError(f"needs {length} weights, got {len(weights)}", field=name)
            if weights:
                check_weights(list(weights), name)
        if self.customers is not None and not 1 <= self.customers <= 100_000_000:
            raise InvalidInputError(f"must be in [1, 1e8], got {self.customers}", field="customers")
        _ = self.begin

    @property
    def begin(self) -> float:
        """The first moment, seconds since 1970."""
        try:
            moment = datetime.fromisoformat(self.start)
        except ValueError:
            raise InvalidInputError(
                f"{self.start!r} is not a time such as 2026-01-05T00:00:00", field="start"
            ) from None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delay:
    """How long a response takes.

    Parameters
    ----------
    mean
        Seconds.
    kind
        ``exponential`` or ``lognormal``.
    spread
        Lognormal only: standard deviation of the logarithm.

    Raises
    ------
    InvalidInputError
        If a value is out of range.
    """

    __pydantic_config__ = STRICT

    mean: float
    kind: str = "exponential"
    spread: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("exponential", "lognormal"):
            raise InvalidInputError(
                f"{self.kind!r} is neither exponential nor lognormal", field="kind"
            )
        if not 0.0 < self.mean < math.inf:
            raise InvalidInputError(f"must be positive, got {self.mean}", field="mean")
        if (self.spread is not None) != (self.kind == "lognormal"):
            raise InvalidInputError("goes with kind = lognormal, and only there", field="spread")
        if self.spread is not None and not 0.0 < self.spread <= 10.0:
            raise InvalidInputError(f"must be in (0, 10], got {self.spread}", field="spread")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fatigue:
    """Messages tire: each takes from the log-odds of the next ones, less and less.

    Parameters
    ----------
    per_message
        What a message just sent takes from the log-odds, or from the mean value.
    half_life
        Days after which a message weighs half.

    Raises
    ------
    InvalidInputError
        If a value is out of range.
    """

    __pydantic_config__ = STRICT

    per_message: float
    half_life: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.per_message < math.inf:
            raise InvalidInputError("must be finite and >= 0", field="per_message")
        if not 0.0 < self.half_life < math.inf:
            raise InvalidInputError(f"must be positive, got {self.half_life}", field="half_life")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsubscribes:
    """Every message may be the last one: after it nothing is taken, so nothing pays.

    Parameters
    ----------
    share
        Probability that a message makes the customer unsubscribe.
    channels
        Other probabilities for some channels.
    reward
        Name of the reward event that tells of it, with value 1; None: nobody is told.

    Raises
    ------
    InvalidInputError
        If a probability is not in [0, 1].
    """

    __pydantic_config__ = STRICT

    share: float
    channels: dict[str, float] = field(default_factory=dict)
    reward: str | None = None

    def __post_init__(self) -> None:
        check_share(self.share, "share")
        for name, value in self.channels.items():
            check_share(value, f"channels.{name}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Availability:
    """When one level may be chosen.

    Parameters
    ----------
    variant, channel, slot
        The level: one of them.
    appears, retires
        Days since the start from which, and until which; None: always.

    Raises
    ------
    InvalidInputError
        If it names no level or several, or no time.
    """

    __pydantic_config__ = STRICT

    variant: str | None = None
    channel: str | None = None
    slot: str | None = None
    appears: float | None = None
    retires: float | None = None

    def __post_init__(self) -> None:
        if [self.variant, self.channel, self.slot].count(None) != 2:
            raise InvalidInputError("names one of variant, channel, slot")
        if self.appears is None and self.retires is None:
            raise InvalidInputError("needs appears, retires or both")
        check_span(self.appears, self.retires, "retires")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Contexts of real customers, one a row of a Parquet file; a customer is a random row.

    Parameters
    ----------
    file
        Beside the world's file; its columns are named for the fields.
    sha256
        Of the file, so that a world stays what it was.
    """

    __pydantic_config__ = STRICT

    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Customers, when they come, how they respond, and what is heard of it.

    Parameters
    ----------
    reward
        Name of the reward event of a response.
    response
        ``logistic``: the event has value 1 and a probability; ``linear``: its value is normal;
        ``wheel``: as ``linear``, with the means of ``wheel``.
    base
        Log-odds, or mean value, where no effect holds.
    noise
        Linear only: standard deviation of the value.
    without_message
        Probability of a response, or its mean value, where nothing is sent.
    traits
        How contexts are drawn. Fields without a trait are missing, or with ``generated`` drawn
        uniformly.
    segments
        Kinds of customers with traits of their own.
    contexts
        Rows of real customers, in place of traits of the same fields.
    effects, generated, wheel
        What customers think of every action.
    traffic
        When they come.
    delay
        How long a response takes; None: what came of a message is known at once.
    missing
        Probability that nothing is ever heard of a message.
    fatigue, unsubscribes
        What messages do to the same customer's later responses.
    bots
        Share of customers that respond to everything.
    availability
        Levels that appear or retire.

    Raises
    ------
    InvalidInputError
        With the path of the part that is wrong or does not fit the others.
    """

    __pydantic_config__ = STRICT

    reward: str
    response: str = "logistic"
    base: float = 0.0
    noise: float | None = None
    without_message: float = 0.0
    traits: tuple[Trait, ...] = ()
    segments: tuple[Segment, ...] = ()
    contexts: Contexts | None = None
    effects: tuple[Effect, ...] = ()
    generated: Generated | None = None
    wheel: Wheel | None = None
    traffic: Traffic = field(default_factory=Traffic)
    delay: Delay | None = None
    missing: float = 0.0
    fatigue: Fatigue | None = None
    unsubscribes: Unsubscribes | None = None
    bots: float = 0.0
    availability: tuple[Availability, ...] = ()

    def __post_init__(self) -> None:
        if self.response not in RESPONSES:
            raise InvalidInputError(
                f"{self.response!r} is none of {', '.join(RESPONSES)}", field="response"
            )
        if (self.noise is not None) != (self.response == "linear"):
            raise InvalidInputError("goes with response = linear, and only there", field="noise")
        if self.noise is not None and not 0.0 <= self.noise < math.inf:
            raise InvalidInputError(f"must be >= 0, got {self.noise}", field="noise")
        if (self.wheel is not None) != (self.response == "wheel"):
            raise InvalidInputError("goes with response = wheel, and only there", field="wheel")
        for name in ("base", "without_message"):
            if not math.isfinite(getattr(self, name)):
                raise InvalidInputError("must be finite", field=name)
        if self.response == "logistic":
            check_share(self.without_message, "without_message")
        check_share(self.missing, "missing")
        check_share(self.bots, "bots")
        self._check_parts()

    def _check_parts(self) -> None:
        check_once(self.traits)
        names = [segment.name for segment in self.segments]
        if len(set(names)) < len(names):
            raise InvalidInputError("a name is repeated", field="segments")
        if sum(segment.share for segment in self.segments) > 1.0 + 1e-9:
            raise InvalidInputError("have shares of more than 1 together", field="segments")
        for i, effect in enumerate(self.effects):
            if effect.segment is not None and effect.segment not in names:
                raise InvalidInputError(
                    f"no segment {effect.segment!r}", field=f"effects[{i}].segment"
                )
        if self.wheel is not None and (self.effects or self.generated or self.base):
            raise InvalidInputError("takes no base, effects or generated", field="wheel")
        if not self.is_memoryless and self.traffic.customers is None:
            raise InvalidInputError(
                "must be given: fatigue and unsubscribes need customers who come again",
                field="traffic.customers",
            )
        if self.wheel is not None and self.fatigue is not None:
            raise InvalidInputError("does not go with the wheel", field="fatigue")

    @property
    def is_memoryless(self) -> bool:
        """Whether earlier messages change nothing."""
        return self.fatigue is None and self.unsubscribes is None

    @property
    def is_drawn_anew(self) -> bool:
        """Whether every replication has a truth of its own, beside other customers."""
        walks = any(effect.walk for effect in self.effects)
        return walks or (self.generated is not None and self.generated.each_replication)
