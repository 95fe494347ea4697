"""Worlds: simulated customers whose behaviour is known, so that regret is exact.

A world is a small declarative file: how customers are drawn, and what adds to the log-odds
that they respond to a message. ``sims/examples`` holds worlds beside the experiments they
are made for.
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from bandit.actions import FACTORS, ActionSpace
from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec

EXAMPLES = Path(__file__).parent / "examples"

Context = dict[str, float | str | bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trait:
    """How one context field is drawn.

    Parameters
    ----------
    field
        Name of the context field.
    low, high
        Numbers: drawn uniformly, or as exp of that if ``log``.
    levels
        Categories: weight of every level.
    share
        Flags: probability of true.
    missing
        Probability that the value is unknown.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    field: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    levels: Mapping[str, float] | None = None
    share: float | None = None
    missing: float = 0.0

    def draw(self, rng: np.random.Generator) -> float | str | bool | None:
        """Draw one value."""
        if rng.random() < self.missing:
            return None
        if self.levels is not None:
            weights = np.array(list(self.levels.values()))
            return list(self.levels)[int(rng.choice(len(weights), p=weights / weights.sum()))]
        if self.share is not None:
            return bool(rng.random() < self.share)
        low, high = self.low or 0.0, 1.0 if self.high is None else self.high
        if self.log:
            return float(np.exp(rng.uniform(np.log(low), np.log(high))))
        return float(rng.uniform(low, high))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What adds to the log-odds of a response.

    Parameters
    ----------
    adds
        Log-odds.
    variant, channel, slot
        Levels it holds for; None: any.
    when
        Context it holds for: a category or flag to equal, or (low, high) to lie in; every
        entry must hold, and a missing value holds for none.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    adds: float
    variant: str | None = None
    channel: str | None = None
    slot: str | None = None
    when: Mapping[str, str | bool | tuple[float, float]] | None = None

    def holds(self, context: Mapping[str, object]) -> bool:
        """Whether the context meets every condition."""
        for name, wanted in (self.when or {}).items():
            value = context.get(name)
            if isinstance(wanted, tuple):
                if not isinstance(value, int | float) or not wanted[0] <= value < wanted[1]:
                    return False
            elif value != wanted:
                return False
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Customers and how they respond.

    Parameters
    ----------
    reward
        Name of the reward event of a response, with value 1.
    base
        Log-odds of a response where no effect holds.
    delay
        Mean seconds between message and response (exponential).
    traits
        How contexts are drawn.
    effects
        What adds to the log-odds.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    reward: str
    base: float
    delay: float
    traits: tuple[Trait, ...]
    effects: tuple[Effect, ...]

    def customer(self, rng: np.random.Generator) -> Context:
        """Draw one customer's context."""
        return {trait.field: trait.draw(rng) for trait in self.traits}

    def rates(self, context: Mapping[str, object], space: ActionSpace) -> NDArray[np.float64]:
        """Give the true response rate of every action, shape (k,)."""
        log_odds = np.full(space.size, self.base)
        for effect in self.effects:
            if effect.holds(context):
                log_odds[_touched(effect, space)] += effect.adds
        rates: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-log_odds))
        return rates

    def check(self, spec: ExperimentSpec) -> None:
        """Refuse an experiment that this world was not made for.

        Raises
        ------
        InvalidInputError
            Naming the field, level or reward that the experiment does not have.
        """
        known = {field.name for field in spec.context}
        for i, trait in enumerate(self.traits):
            if trait.field not in known:
                raise InvalidInputError(f"no {trait.field!r} in the context", field=f"traits[{i}]")
        if self.reward not in spec.outcome.by_name:
            raise InvalidInputError(f"no reward {self.reward!r}", field="reward")
        for i, effect in enumerate(self.effects):
            for factor, levels in zip(FACTORS, spec.actions.factors, strict=True):
                name = getattr(effect, factor)
                if name is not None and name not in {level.name for level in levels}:
                    raise InvalidInputError(f"no {factor} {name!r}", field=f"effects[{i}]")


def read(path: Path) -> World:
    """Read a world from a TOML file.

    Raises
    ------
    InvalidInputError
        Naming the file and every field that does not fit.
    """
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text())
        return TypeAdapter(World).validate_json(json.dumps(data))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InvalidInputError(str(error), field=str(path)) from None
    except ValidationError as error:
        listed = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors()[:10]
        )
        raise InvalidInputError(listed, field=str(path)) from None


def _touched(effect: Effect, space: ActionSpace) -> NDArray[np.bool_]:
    touched = np.ones(space.size, dtype=np.bool_)
    for column, (factor, levels) in enumerate(zip(FACTORS, space.factors, strict=True)):
        name = getattr(effect, factor)
        if name is not None:
            names: Sequence[str] = [level.name for level in levels]
            touched &= space.table[:, column] == names.index(name)
    return touched
