"""The Open Bandit sample: 10,000 rows each of a fashion shop, logged by two policies.

80 items in 3 positions; a uniform policy (``random_all.csv``) and a Bernoulli Thompson sampling
policy (``bts_all.csv``), with true propensities. Saito, Aihara, Matsutani & Narita, Open Bandit
Dataset and Pipeline, NeurIPS Datasets and Benchmarks 2021; CC BY 4.0.
"""

import csv
from datetime import datetime
from pathlib import Path

import numpy as np

from bandit.context import ContextField
from sims.datasets import content
from sims.log import Log

ITEMS, POSITIONS, ROWS = 80, 3, 10_000
SHA256 = {
    "random": "7168295b6e0a9eabcf3392320a5dd434e542b68e705d5cd9491499af589812f1",
    "bts": "0ad874e4dbf6902f0845dd478ad8dde5ef6903583d3ffaace78411bdad064106",
}
"""Of the content, uncompressed, by the policy that logged."""

CLICKS = {"random": 38, "bts": 42}
"""Rows with a click: rates .0038 and .0042."""

FEATURES = tuple(f"user_feature_{i}" for i in range(4))


def load(path: Path) -> Log:
    """Read one of the two samples, compressed or not.

    Returns
    -------
    Log
        Items as actions, clicks as rewards, positions from 0, and the user's four features as
        context: the place of the value among the file's own, as ``fields`` names them.

    Raises
    ------
    InvalidInputError
        If the file can not be read, or its content is not the published one.
    """
    _, lines = _lines(path)
    levels = _levels(lines)
    places = [{level: i for i, level in enumerate(one)} for one in levels]
    users = [[places[i][line[name]] for i, name in enumerate(FEATURES)] for line in lines]
    times = [datetime.fromisoformat(line["timestamp"]).timestamp() for line in lines]
    return Log(
        actions=np.array([int(line["item_id"]) for line in lines], dtype=np.int64),
        rewards=np.array([float(line["click"]) for line in lines]),
        propensities=np.array([float(line["propensity_score"]) for line in lines]),
        size=ITEMS,
        rows=np.array(users, dtype=np.float64),
        times=np.array(times),
        positions=np.array([int(line["position"]) - 1 for line in lines], dtype=np.int64),
        places=np.arange(1, len(lines) + 1),
    )


def policy(path: Path) -> str:
    """Tell which policy logged a sample: ``random`` or ``bts``.

    Raises
    ------
    InvalidInputError
        As ``load``.
    """
    return _lines(path)[0]


def fields(path: Path) -> tuple[ContextField, ...]:
    """Give the context's schema: four categories with the levels of the file, sorted.

    Raises
    ------
    InvalidInputError
        As ``load``.
    """
    levels = _levels(_lines(path)[1])
    return tuple(
        ContextField(name=name, kind="category", levels=tuple(one))
        for name, one in zip(FEATURES, levels, strict=True)
    )


def _levels(lines: list[dict[str, str]]) -> list[list[str]]:
    return [sorted({line[name] for line in lines}) for name in FEATURES]


def _lines(path: Path) -> tuple[str, list[dict[str, str]]]:
    known, data = content.read(path, "is no Open Bandit sample", SHA256)
    return known, list(csv.DictReader(data.decode().splitlines()))
