"""The action space: variant x channel x slot, exclusions, and indices that never move."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bandit.decision import Removed
from bandit.errors import InvalidInputError, NotFoundError

FACTORS = ("variant", "channel", "slot")
MAX_ACTIONS = 10_000
MAX_LEVELS = 1_000
MAX_EXCLUSIONS = 1_000
MAX_ATTRIBUTES = 64
MAX_GENERATION = 1_000_000
LARGEST_ATTRIBUTE = 1e6
RETIRED = "retired"
_NAME = re.compile(r"[\w.:@+-][\w .:@+-]{0,63}")
_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d")


def check_name(name: str, field: str) -> None:
    """Refuse a name that is empty, longer than 64 characters or hard to quote.

    Raises
    ------
    InvalidInputError
        With ``field`` as the path.
    """
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"{name[:80]!r} is not a name: use 1 to 64 letters, digits, spaces or _ . : @ + -",
            field=field,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One value of a factor.

    Parameters
    ----------
    name
        1 to 64 characters, unique in its factor.
    time
        Slots only: local time of day ``HH:MM`` at which the message goes out; None sends at once.
    attributes
        Pairs of name and number that describe the level, at most 64; kept in order of name.
        They enter the model as declared, so scale them to about [-1, 1].
    generation
        The edit that added the level; 0 is the first specification.
    retired
        Whether the level is chosen no more. Its actions keep their indices and weights.

    Raises
    ------
    InvalidInputError
        For a bad name, time, generation or attribute.
    """

    name: str
    time: str | None = None
    attributes: tuple[tuple[str, float], ...] = field(default_factory=tuple)
    generation: int = 0
    retired: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise InvalidInputError(f"{self.time[:20]!r} is not HH:MM", field="time")
        if not 0 <= self.generation <= MAX_GENERATION:
            raise InvalidInputError(
                f"must be in [0, {MAX_GENERATION}], got {self.generation}", field="generation"
            )
        if self.attributes:
            object.__setattr__(self, "attributes", _checked_attributes(self.attributes))


def _checked_attributes(pairs: tuple[tuple[str, float], ...]) -> tuple[tuple[str, float], ...]:
    """Give attributes in order of name, as floats."""
    if len(pairs) > MAX_ATTRIBUTES:
        raise InvalidInputError(
            f"{len(pairs)} numbers, at most {MAX_ATTRIBUTES} are allowed", field="attributes"
        )
    for name, value in pairs:
        check_name(name, "attributes")
        if not (math.isfinite(value) and abs(value) <= LARGEST_ATTRIBUTE):
            raise InvalidInputError(
                f"must be finite and within +-1e6, got {value}", field=f"attributes.{name}"
            )
    if len({name for name, _ in pairs}) < len(pairs):
        raise InvalidInputError("repeat a name", field="attributes")
    return tuple(sorted((name, float(value)) for name, value in pairs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A rule that takes actions away: those that match every factor it names.

    Raises
    ------
    InvalidInputError
        If it names no factor, or the reason is empty or longer than 200 characters.
    """

    variant: str | None = None
    channel: str | None = None
    slot: str | None = None
    reason: str

    def __post_init__(self) -> None:
        if self.variant is None and self.channel is None and self.slot is None:
            raise InvalidInputError("name at least one of variant, channel, slot")
        if not 0 < len(self.reason) <= 200:
            raise InvalidInputError("give a reason of 1 to 200 characters", field="reason")


def _check_alike(levels: tuple[Level, ...], plural: str) -> None:
    """Refuse levels with different names of attributes, and a factor with all levels retired."""
    expected = [name for name, _ in levels[0].attributes]
    for i, level in enumerate(levels):
        found = [name for name, _ in level.attributes]
        if found != expected:
            raise InvalidInputError(
                f"has attributes ({', '.join(found)}), but {levels[0].name!r} has "
                f"({', '.join(expected)}); all levels of a factor need the same",
                field=f"{plural}[{i}].attributes",
            )
    if all(level.retired for level in levels):
        raise InvalidInputError("are all retired", field=plural)


@dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """All combinations of three factors, less the excluded ones.

    Actions are ordered by generation, the latest of their levels', then by their place in the
    product, variant slowest. So a level of a later generation moves no index, whatever its
    factor; exclusions and retirement take none away. A log stays readable for ever.

    Parameters
    ----------
    variants, channels, slots
        Levels in a fixed order: what is said, where and when.
    exclusions
        Rules that hold for every request.

    Raises
    ------
    InvalidInputError
        For empty factors, repeated or too many levels, levels of a factor with different
        attributes, unknown levels in an exclusion, or rules that leave nothing.
    """

    variants: tuple[Level, ...]
    channels: tuple[Level, ...]
    slots: tuple[Level, ...] = (Level(name="now"),)
    exclusions: tuple[Exclusion, ...] = ()

    def __post_init__(self) -> None:
        for plural, levels in zip(("variants", "channels", "slots"), self.factors, strict=True):
            if not 0 < len(levels) <= MAX_LEVELS:
                raise InvalidInputError(
                    f"needs 1 to {MAX_LEVELS} levels, got {len(levels)}", field=plural
                )
            seen: set[str] = set()
            for i, level in enumerate(levels):
                if level.name in seen:
                    raise InvalidInputError(f"{level.name!r} is repeated", field=f"{plural}[{i}]")
                if level.time is not None and plural != "slots":
                    raise InvalidInputError("only slots have a time", field=f"{plural}[{i}].time")
                seen.add(level.name)
            _check_alike(levels, plural)
        if self.size > MAX_ACTIONS:
            raise InvalidInputError(f"{self.size} combinations, at most {MAX_ACTIONS} are allowed")
        self.check(self.exclusions)
        if not self.mask.any():
            raise InvalidInputError("leave no action at all", field="exclusions")

    @property
    def factors(self) -> tuple[tuple[Level, ...], tuple[Level, ...], tuple[Level, ...]]:
        """The levels of variant, channel and slot."""
        return self.variants, self.channels, self.slots

    @property
    def size(self) -> int:
        """Number of combinations ``k``, excluded ones included."""
        return len(self.variants) * len(self.channels) * len(self.slots)

    @cached_property
    def table(self) -> NDArray[np.int32]:
        """Level indices of every action, shape (k, 3)."""
        grid = np.array(list(product(*map(range, map(len, self.factors)))), dtype=np.int32)
        return grid[self._order]

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        """Place in the product of every action, shape (k,): by generation, stably."""
        born = [np.array([level.generation for level in f]) for f in self.factors]
        latest = np.maximum(np.maximum.outer(born[0], born[1])[:, :, None], born[2])
        return np.argsort(latest.ravel(), kind="stable")

    @cached_property
    def _indices(self) -> list[int]:
        """Index of every place in the product."""
        indices: list[int] = np.argsort(self._order, kind="stable").tolist()
        return indices

    @cached_property
    def _positions(self) -> tuple[dict[str, int], ...]:
        return tuple({level.name: i for i, level in enumerate(f)} for f in self.factors)

    def index(self, variant: str, channel: str, slot: str) -> int:
        """Give the index of a combination.

        Raises
        ------
        NotFoundError
            If a level is not in the space.
        """
        at = 0
        for factor, positions, name in zip(
            FACTORS, self._positions, (variant, channel, slot), strict=True
        ):
            if name not in positions:
                raise NotFoundError(f"no {factor} {name[:64]!r}", field=factor)
            at = at * len(positions) + positions[name]
        return self._indices[at]

    def levels(self, action: int) -> tuple[Level, Level, Level]:
        """Give variant, channel and slot of an action index."""
        if not 0 <= action < self.size:
            raise NotFoundError(f"no action {action} among {self.size}", field="action")
        return self._combinations[action]

    @cached_property
    def _combinations(self) -> list[tuple[Level, Level, Level]]:
        grid = list(product(*self.factors))
        return [grid[place] for place in self._order]

    @cached_property
    def _rules(self) -> tuple[Exclusion, ...]:
        """What holds for every request: retired levels, then the declared exclusions."""
        retired = [
            Exclusion(**{factor: level.name}, reason=RETIRED)
            for factor, levels in zip(FACTORS, self.factors, strict=True)
            for level in levels
            if level.retired
        ]
        return (*retired, *self.exclusions)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Mark the actions that the space's own rules leave, shape (k,), read-only."""
        return self._mask(())

    def eligible(self, exclusions: tuple[Exclusion, ...]) -> NDArray[np.bool_]:
        """Mark the actions left by the space's own rules and the request's, shape (k,).

        Raises
        ------
        InvalidInputError
            If an exclusion names an unknown level; the path is ``exclusions[i].factor``.
        """
        return self._cached_mask(exclusions) if exclusions else self.mask

    @cached_property
    def _cached_mask(self) -> Callable[[tuple[Exclusion, ...]], NDArray[np.bool_]]:
        return lru_cache(maxsize=256)(self._mask)

    def _mask(self, exclusions: tuple[Exclusion, ...]) -> NDArray[np.bool_]:
        self.check(exclusions)
        mask = np.ones(self.size, dtype=np.bool_)
        for rule in (*self._rules, *exclusions):
            mask &= ~self._matches(rule)
        mask.flags.writeable = False
        return mask

    def removed(self, exclusions: tuple[Exclusion, ...]) -> list[Removed]:
        """Name each removed action with the first rule that took it away."""
        self.check(exclusions)
        rules = list(dict.fromkeys((*self._rules, *exclusions)))
        first = np.full(self.size, -1)
        for i, rule in enumerate(rules):
            first[(first < 0) & self._matches(rule)] = i
        taken = np.flatnonzero(first >= 0)
        return [Removed(a, rules[first[a]].reason) for a in taken.tolist()]

    def check(self, exclusions: tuple[Exclusion, ...]) -> None:
        """Refuse too many exclusions, or one that names an unknown level.

        Raises
        ------
        InvalidInputError
            With the path ``exclusions[i].factor``.
        """
        if len(exclusions) > MAX_EXCLUSIONS:
            raise InvalidInputError(
                f"{len(exclusions)} rules, at most {MAX_EXCLUSIONS} are allowed",
                field="exclusions",
            )
        for i, rule in enumerate(exclusions):
            for factor, positions in zip(FACTORS, self._positions, strict=True):
                name: str | None = getattr(rule, factor)
                if name is not None and name not in positions:
                    raise InvalidInputError(
                        f"no {factor} {name[:64]!r}", field=f"exclusions[{i}].{factor}"
                    )

    def _matches(self, rule: Exclusion) -> NDArray[np.bool_]:
        hit = np.ones(self.size, dtype=np.bool_)
        for column, (factor, positions) in enumerate(zip(FACTORS, self._positions, strict=True)):
            name: str | None = getattr(rule, factor)
            if name is not None:
                hit &= self.table[:, column] == positions[name]
        return hit
