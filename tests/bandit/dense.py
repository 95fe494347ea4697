"""The design matrix that the engine never builds, made the obvious way."""

import numpy as np

from bandit.actions import FACTORS
from bandit.features import FeatureMap
from bandit.kernels.compiling import Floats


def design(features: FeatureMap, x: Floats) -> Floats:
    """Give phi(x, a) of every action by Kronecker products, shape (k, m)."""
    rows = []
    for action in range(features.space.size):
        parts = []
        for term in features.terms:
            part = np.ones(1)
            for factor, levels, level in zip(
                FACTORS, features.space.factors, features.space.levels(action), strict=True
            ):
                if factor in term.names:
                    part = np.kron(part, [one == level for one in levels])
                if f"{factor}.attributes" in term.names:
                    part = np.kron(part, [value for _, value in level.attributes])
            parts.append(np.kron(part, x) if "context" in term.names else part)
        rows.append(np.concatenate(parts))
    return np.array(rows)
