"""A sample of a log's rows, and their folds: the same however the log is cut into batches.

Both are by a hash of the row's number or of its customer, not by drawing: a log read in batches
gives the sample that it gives in memory.
"""

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Ints
from sims.log import Log, join, taken

_WORD = 2**64


def scrambled(numbers: Ints, seed: int, purpose: int) -> NDArray[np.uint64]:
    """Give every number a uniform 64-bit word, different ones for different numbers.

    Notes
    -----
    SplitMix64 (Steele, Lea & Flood 2014), a bijection.
    """
    key = (seed * 0x9E3779B97F4A7C15 + purpose * 0xD1B54A32D192ED03) % _WORD
    z = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def folds_of(log: Log, numbers: Ints, folds: int, seed: int) -> Ints:
    """Give the fold of every row; a customer's rows are in one.

    Parameters
    ----------
    numbers : (n,)
        Of the rows in the whole log, from 0.
    """
    who = numbers if log.customers is None else log.customers
    words = scrambled(who, seed, 1)
    found: Ints = (words % np.uint64(folds)).astype(np.int64)
    return found


class Sample:
    """Gathers at most ``size`` rows: those whose numbers hash lowest.

    Parameters
    ----------
    size
        Most rows that are kept.
    seed
        Names the sample.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self._parts: list[tuple[Ints, NDArray[np.uint64], Log]] = []
        self._kept = 0
        self._limit: int | None = None

    def add(self, log: Log, numbers: Ints) -> None:
        """Look at the next batch, whose rows have these numbers in the whole log."""
        words = scrambled(numbers, self.seed, 3)
        if self._limit is not None:
            low = words <= np.uint64(self._limit)
            numbers, words, log = numbers[low], words[low], taken(log, low)
        self._parts.append((numbers, words, log))
        self._kept += len(numbers)
        if self._kept > 2 * self.size:
            self._shrink()

    def _shrink(self) -> None:
        """Keep the lowest of what was gathered."""
        words = np.concatenate([part[1] for part in self._parts])
        if len(words) > self.size:
            self._limit = int(np.partition(words, self.size - 1)[self.size - 1])
            cut = np.uint64(self._limit)
            self._parts = [
                (numbers[w <= cut], w[w <= cut], taken(log, w <= cut))
                for numbers, w, log in self._parts
            ]
        self._kept = sum(len(numbers) for numbers, _, _ in self._parts)

    def rows(self) -> tuple[Ints, Log]:
        """Give the numbers of the rows, from 0 and increasing, and the rows.

        Raises
        ------
        InvalidInputError
            If there are none.
        """
        parts = [part for part in self._parts if len(part[0])]
        if not parts:
            raise InvalidInputError("has no rows", field="log")
        self._shrink()
        parts = [part for part in self._parts if len(part[0])]
        numbers = np.concatenate([part[0] for part in parts])
        return numbers, join([part[2] for part in parts])
