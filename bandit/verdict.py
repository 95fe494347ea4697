"""A verdict: what the gate found of one specification, check by check.

It is bound to the hash of the specification's canonical text, and names what it was made with.
"""

import math
from dataclasses import dataclass
from typing import Literal, Self

from bandit.errors import InvalidInputError

MAX_CHECKS = 1_000
MAX_TEXT = 1_000
MAX_SOURCES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of a verdict.

    Parameters
    ----------
    name
        What is checked, such as ``regret``.
    source
        Where it was measured: a world, the log, or the specification itself.
    passed
        Whether it holds.
    value, limit
        What was measured, and its limit; None where it is no number.
    bound
        Whether the limit is the most or the least; empty without one.
    found
        What was found, in words.
    why
        Why it matters.

    Raises
    ------
    InvalidInputError
        If a number is not finite, a text too long, or the name missing.
    """

    name: str
    source: str
    passed: bool
    value: float | None = None
    limit: float | None = None
    bound: Literal["", "at most", "at least"] = ""
    found: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= 64:
            raise InvalidInputError("needs 1 to 64 characters", field="name")
        if self.bound not in ("", "at most", "at least"):
            raise InvalidInputError("is neither 'at most' nor 'at least'", field="bound")
        for name in ("source", "found", "why"):
            if len(getattr(self, name)) > MAX_TEXT:
                raise InvalidInputError(f"is longer than {MAX_TEXT} characters", field=name)
        for name in ("value", "limit"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise InvalidInputError(f"must be finite, got {number}", field=name)

    @classmethod
    def at_most(  # noqa: PLR0913  one line of a verdict
        cls,
        name: str,
        source: str,
        value: float | None,
        limit: float,
        *,
        found: str,
        why: str,
        holds: bool = True,
    ) -> Self:
        """Check that a number is not above its limit.

        Parameters
        ----------
        value
            None: it can not be told, and so the check does not hold.
        holds
            What else must hold.
        """
        passed = holds and value is not None and value <= limit
        return cls(
            name=name, source=source, passed=passed, value=value, limit=limit, bound="at most",
            found=found, why=why,
        )  # fmt: skip

    @classmethod
    def at_least(  # noqa: PLR0913  one line of a verdict
        cls,
        name: str,
        source: str,
        value: float | None,
        limit: float,
        *,
        found: str,
        why: str,
        holds: bool = True,
    ) -> Self:
        """Check that a number is not below its limit; see ``at_most``."""
        passed = holds and value is not None and value >= limit
        return cls(
            name=name, source=source, passed=passed, value=value, limit=limit, bound="at least",
            found=found, why=why,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate found of one specification.

    Parameters
    ----------
    experiment
        Its name.
    spec_hash
        SHA-256 of its canonical text, 64 hexadecimal digits (``bandit.spec_file.digest``).
    checks
        All of them, at least one.
    worlds
        Name and digest of every world that was run.
    log
        Name and digest of the log; empty without one.
    seed
        Of all that was drawn.
    engine
        Version of the engine.

    Raises
    ------
    InvalidInputError
        If a part is missing or too long.
    """

    experiment: str
    spec_hash: str
    checks: tuple[Check, ...]
    worlds: tuple[str, ...] = ()
    log: str = ""
    seed: int = 0
    engine: str = ""

    def __post_init__(self) -> None:
        if len(self.spec_hash) != 64 or set(self.spec_hash) - set("0123456789abcdef"):
            raise InvalidInputError("needs 64 hexadecimal digits", field="spec_hash")
        if not 0 < len(self.checks) <= MAX_CHECKS:
            raise InvalidInputError(
                f"needs 1 to {MAX_CHECKS}, got {len(self.checks)}: a verdict without a check says "
                "nothing",
                field="checks",
            )
        if len(self.worlds) > MAX_SOURCES:
            raise InvalidInputError(f"holds more than {MAX_SOURCES}", field="worlds")
        for i, world in enumerate(self.worlds):
            if len(world) > MAX_TEXT:
                raise InvalidInputError(
                    f"is longer than {MAX_TEXT} characters", field=f"worlds[{i}]"
                )
        for name in ("experiment", "log", "engine"):
            if len(getattr(self, name)) > MAX_TEXT:
                raise InvalidInputError(f"is longer than {MAX_TEXT} characters", field=name)
        if not 0 <= self.seed < 2**63:
            raise InvalidInputError("must be in [0, 2**63)", field="seed")

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    @property
    def stopped_by(self) -> tuple[Check, ...]:
        """The checks that do not hold."""
        return tuple(check for check in self.checks if not check.passed)
