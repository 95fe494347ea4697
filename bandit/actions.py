"""The action space: variant x channel x slot, exclusions, and indices that never move."""

import re
from collections.abc import Callable
from dataclasses import dataclass
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

    Raises
    ------
    InvalidInputError
        For a bad name or time.
    """

    name: str
    time: str | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise InvalidInputError(f"{self.time[:20]!r} is not HH:MM", field="time")


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


@dataclass(frozen=True, kw_only=True)
class ActionSpace:
    """All combinations of three factors, less the excluded ones.

    An action's index is its place in the product, variant slowest; exclusions take no
    index away, so a log stays readable whatever is excluded later.

    Parameters
    ----------
    variants, channels, slots
        Levels in a fixed order: what is said, where and when.
    exclusions
        Rules that hold for every request.

    Raises
    ------
    InvalidInputError
        For empty factors, repeated or too many levels, unknown levels in an exclusion, or
        exclusions that leave nothing.
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
        return np.array(list(product(*map(range, map(len, self.factors)))), dtype=np.int32)

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
        return at

    def levels(self, action: int) -> tuple[Level, Level, Level]:
        """Give variant, channel and slot of an action index."""
        if not 0 <= action < self.size:
            raise NotFoundError(f"no action {action} among {self.size}", field="action")
        return self._combinations[action]

    @cached_property
    def _combinations(self) -> list[tuple[Level, Level, Level]]:
        return list(product(*self.factors))

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
        for rule in (*self.exclusions, *exclusions):
            mask &= ~self._matches(rule)
        mask.flags.writeable = False
        return mask

    def removed(self, exclusions: tuple[Exclusion, ...]) -> list[Removed]:
        """Name each removed action with the first rule that took it away."""
        self.check(exclusions)
        rules = list(dict.fromkeys((*self.exclusions, *exclusions)))
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
