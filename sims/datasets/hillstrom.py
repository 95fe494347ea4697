"""The Hillstrom e-mail campaign: 64,000 customers, randomised over two e-mails and none.

Kevin Hillstrom, MineThatData E-Mail Analytics and Data Mining Challenge, 2008.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec
from sims.datasets import content
from sims.log import Log

SHA256 = "0e5893329d8b93cefecc571777672028290ab69865718020c78c7284f291aece"
REWARDS = ("visit", "conversion", "spend")
PUBLISHED: dict[str, tuple[int, float, float, float]] = {
    "Mens E-Mail": (21_307, 0.182757, 0.012531, 1.422617),
    "Womens E-Mail": (21_387, 0.151400, 0.008837, 1.077202),
    "No E-Mail": (21_306, 0.106167, 0.005726, 0.652789),
}
"""Customers and mean visit, conversion and spend of every arm."""


class Row(NamedTuple):
    """One customer: context, what was sent, and what came of it."""

    context: dict[str, float | str | bool]
    variant: str
    outcomes: dict[str, float]


def load(path: Path) -> list[Row]:
    """Read the campaign, compressed or not.

    Raises
    ------
    InvalidInputError
        If the file can not be read, its content is not the published one, or its rates are not.
    """
    _, data = content.read(path, "is not the Hillstrom campaign", {"campaign": SHA256})
    rows = [_row(line) for line in csv.DictReader(data.decode().splitlines())]
    _check_rates(rows)
    return rows


def log(rows: list[Row], spec: ExperimentSpec, reward: str, *, seed: int | None = None) -> Log:
    """Give the campaign as a uniform log.

    Parameters
    ----------
    spec
        With the three arms as its variants, and the campaign's context.
    reward
        Which outcome is the reward.
    seed
        Of the order in which customers come; None keeps the file's.

    Raises
    ------
    InvalidInputError
        If the specification is of another campaign.
    """
    if reward not in REWARDS:
        raise InvalidInputError(f"{reward!r} is none of {', '.join(REWARDS)}", field="reward")
    arms = {level.name: i for i, level in enumerate(spec.actions.variants)}
    if set(arms) != set(PUBLISHED) or spec.actions.size != len(arms):
        raise InvalidInputError(f"need the variants {', '.join(PUBLISHED)}", field="actions")
    n = len(rows)
    order = np.arange(n) if seed is None else np.random.default_rng(seed).permutation(n)
    taken = [rows[i] for i in order.tolist()]
    names = [field.name for field in spec.context]
    contexts = [spec.schema.row({k: r.context.get(k) for k in names}) for r in taken]
    return Log(
        actions=np.array([arms[row.variant] for row in taken], dtype=np.int64),
        rewards=np.array([row.outcomes[reward] for row in taken], dtype=np.float64),
        propensities=np.full(n, 1.0 / len(arms)),
        size=len(arms),
        rows=np.array(contexts, dtype=np.float64).reshape(n, len(names)),
        places=order.astype(np.int64) + 1,
    )


def _row(line: dict[str, str]) -> Row:
    return Row(
        {
            "recency": float(line["recency"]),
            "history": float(line["history"]),
            "mens": line["mens"] == "1",
            "womens": line["womens"] == "1",
            "newbie": line["newbie"] == "1",
            "zip_code": line["zip_code"],
            "channel": line["channel"],
        },
        line["segment"],
        {name: float(line[name]) for name in REWARDS},
    )


def _check_rates(rows: list[Row]) -> None:
    for variant, (customers, *means) in PUBLISHED.items():
        mine = [row for row in rows if row.variant == variant]
        found = [sum(row.outcomes[name] for row in mine) / max(len(mine), 1) for name in REWARDS]
        pairs = zip(found, means, strict=True)
        if len(mine) != customers or any(abs(a - b) > 1e-6 for a, b in pairs):
            raise InvalidInputError(f"{variant}: {len(mine)} customers with means {found}")
