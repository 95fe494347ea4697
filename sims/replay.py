"""Rejection replay: what a policy would have earned on a uniformly randomised log.

Where the policy's choice equals what was sent, the logged outcome is what it would have
earned, and it may learn from it; all other rows are passed over. On a uniform log this is
unbiased (Li, Chu, Langford & Wang, WSDM 2011).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from bandit.measurement import Sample
from sims.hillstrom import Row

Decide = Callable[[Sequence[tuple[str, Row]]], Sequence[tuple[str, str | None]]]
"""From (request id, row) to (decision id, variant)."""

BATCH = 256
"""Customers decided for between two publications."""

Tell = Callable[[Sequence[tuple[str, float]]], None]
"""Report (decision id, outcome) of the rows that matched."""


@dataclass(slots=True)
class Replayed:
    """What a replay has found so far.

    Attributes
    ----------
    rows
        Customers decided for.
    matched
        Outcomes of those where the decision equals the log.
    chosen
        Decisions by variant.
    """

    rows: int = 0
    matched: list[float] = field(default_factory=list)
    chosen: dict[str, int] = field(default_factory=dict)

    @property
    def sample(self) -> Sample:
        """The matched outcomes as a sample."""
        return Sample.of(self.matched)


def replay(
    rows: Sequence[Row], reward: str, seed: int, decide: Decide, tell: Tell
) -> Iterator[Replayed]:
    """Play a log past a policy, in an order given by ``seed``; yield after every batch.

    Parameters
    ----------
    rows
        A uniformly randomised log.
    reward
        Which outcome the policy is told.
    decide, tell
        The policy; ``tell`` returns when what was told is learned.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    found = Replayed()
    for start in range(0, len(rows), BATCH):
        asked = [(f"hillstrom-{seed}-{i}", rows[i]) for i in order[start : start + BATCH]]
        told: list[tuple[str, float]] = []
        for (_, row), (decision_id, variant) in zip(asked, decide(asked), strict=True):
            found.chosen[str(variant)] = found.chosen.get(str(variant), 0) + 1
            if variant == row.variant:
                told.append((decision_id, row.outcomes[reward]))
        if told:
            tell(told)
        found.rows += len(asked)
        found.matched += [value for _, value in told]
        yield found


def constants(rows: Sequence[Row], reward: str) -> dict[str, Sample]:
    """Give what every constant arm earned, and ``uniform``: all rows."""
    arms = {
        variant: Sample.of([r.outcomes[reward] for r in rows if r.variant == variant])
        for variant in sorted({row.variant for row in rows})
    }
    return {"uniform": Sample.of([row.outcomes[reward] for row in rows]), **arms}
