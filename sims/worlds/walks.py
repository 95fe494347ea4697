"""Random walks of effects, known at any time."""

import threading

import numpy as np

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.worlds import draws

STEP = 3_600.0
_BLOCK = 1_024
_MOST = 10_000_000


class Walk:
    """A random walk in steps of an hour that starts at 0.

    Parameters
    ----------
    sd
        Standard deviation after a day.
    begin
        Time of its start.
    number
        Of the effect that walks.
    seed, replication
        Draw it.
    """

    def __init__(self, sd: float, begin: float, number: int, seed: int, replication: int) -> None:
        self._scale = sd * np.sqrt(STEP / 86_400.0)
        self._begin = begin
        self._stream = draws.stream(f"walk {number}", seed, replication)
        self._path = np.zeros(1)
        self._lock = threading.Lock()

    def at(self, times: Floats) -> Floats:
        """Give the walk at some times, shape (n,)."""
        steps = np.floor((times - self._begin) / STEP).astype(np.int64)
        with self._lock:
            last = int(steps.max(initial=0))
            if last > _MOST:
                raise InvalidInputError(
                    f"lasts {last} hours, a walk at most {_MOST}", field="effects.walk"
                )
            while len(self._path) <= last:
                first = len(self._path) - 1
                numbers = np.arange(first, first + _BLOCK)
                moved = self._scale * draws.normals(self._stream, numbers, 1)[:, 0]
                moved[0] += self._path[-1]
                self._path = np.concatenate([self._path, np.cumsum(moved)])
            return self._path[steps]
