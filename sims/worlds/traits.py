"""Who the customers of a world are: how every field of their context is drawn."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from bandit.actions import check_name
from bandit.errors import InvalidInputError

STRICT = {"extra": "forbid", "strict": True}
CLOCKS = ("hour", "weekday")
_FORMS = ("low", "mean", "levels", "share", "clock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """How one context field is drawn, in one of five forms.

    Parameters
    ----------
    field
        Name of the context field.
    low, high
        Numbers: drawn uniformly in [low, high), or as exp of that if ``log``.
    mean, sd
        Numbers: drawn from a normal distribution, whose logarithm is meant if ``log``.
    log
        Whether the logarithm is drawn.
    levels
        Categories: weight of every level.
    share
        Flags: probability of true.
    clock
        The time of the visit (UTC): ``hour`` in [0, 24), or ``weekday``, 0 for Monday; for a
        category the weekday's level ``mon`` ... ``sun``.
    missing
        Probability that the value is unknown.
    each_visit
        Whether a customer who comes again has a new value.

    Raises
    ------
    InvalidInputError
        If the parameters are not those of one form, or are out of range.
    """

    __pydantic_config__ = STRICT

    field: str
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    sd: float | None = None
    log: bool = False
    levels: Mapping[str, float] | None = None
    share: float | None = None
    clock: str | None = None
    missing: float = 0.0
    each_visit: bool = False

    def __post_init__(self) -> None:
        given = [name for name in _FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidInputError(
                "needs one of: low and high, mean and sd, levels, share, clock; "
                f"has {' and '.join(given) or 'none'}"
            )
        if (self.low is None) != (self.high is None):
            raise InvalidInputError("goes with low, and low with high", field="high")
        if (self.mean is None) != (self.sd is None):
            raise InvalidInputError("goes with mean, and mean with sd", field="sd")
        check_share(self.missing, "missing")
        if self.share is not None:
            check_share(self.share, "share")
        self._check_numbers()
        if self.levels is not None:
            check_weights(list(self.levels.values()), "levels")
        if self.clock is not None and self.clock not in CLOCKS:
            raise InvalidInputError(f"{self.clock!r} is neither hour nor weekday", field="clock")

    def _check_numbers(self) -> None:
        if self.low is not None and self.high is not None:
            if not (math.isfinite(self.low) and self.low < self.high < math.inf):
                raise InvalidInputError(
                    f"need low < high, got {self.low}, {self.high}", field="low"
                )
            if self.log and self.low <= 0:
                raise InvalidInputError(f"a logarithm needs low > 0, got {self.low}", field="low")
        elif self.mean is not None and self.sd is not None:
            if not (math.isfinite(self.mean) and 0 <= self.sd < math.inf):
                raise InvalidInputError(f"need sd >= 0, got {self.mean}, {self.sd}", field="sd")
        elif self.log:
            raise InvalidInputError("goes with low and high, or mean and sd", field="log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Customers of one kind: the context does not name it, but its traits are drawn together.

    Parameters
    ----------
    name
        For effects that hold for the segment alone.
    share
        Of all customers. What the segments leave is the segment without a name.
    traits
        In place of the world's traits of the same fields.

    Raises
    ------
    InvalidInputError
        For a bad name or share, or a field drawn twice.
    """

    __pydantic_config__ = STRICT

    name: str
    share: float
    traits: tuple[Trait, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        check_share(self.share, "share")
        check_once(self.traits)


def check_share(value: float, name: str) -> None:
    """Refuse what is not in [0, 1].

    Raises
    ------
    InvalidInputError
        With ``name`` as the path.
    """
    if not 0.0 <= value <= 1.0:
        raise InvalidInputError(f"must be in [0, 1], got {value}", field=name)


def check_weights(values: list[float], name: str) -> None:
    """Refuse weights that are negative, not finite, or all zero.

    Raises
    ------
    InvalidInputError
        With ``name`` as the path.
    """
    if not all(0.0 <= v < math.inf for v in values) or not 0.0 < sum(values) < math.inf:
        raise InvalidInputError("need weights >= 0 with a positive sum", field=name)


def check_once(traits: tuple[Trait, ...]) -> None:
    """Refuse two traits of one field.

    Raises
    ------
    InvalidInputError
        With the path ``traits[i].field``.
    """
    names = [trait.field for trait in traits]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise InvalidInputError(f"{name!r} is drawn twice", field=f"traits[{i}].field")
