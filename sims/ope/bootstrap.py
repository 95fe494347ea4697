"""Bootstrap intervals of many estimators at once, from batches, in several threads.

Replicate r counts row i a Poisson number of times. That number has a name, (seed, replicate,
row), so it is the same however the log is cut into batches and whoever computes it. With
clusters the name of the row is that of its cluster. Derivation: docs/math/intervals.md.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import special

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from sims.kernels import resampling
from sims.ope.estimators import Terms
from sims.ope.intervals import Interval, check_level, columns_of

KINDS = ("percentile", "bca")

_LOST = 0.01
"""Largest share of replicates without weight that are left out."""

_SMALL = 1 << 20
"""Fewer weights than this are not worth a thread."""


class Bootstrap:
    """Replicates of many estimates, gathered from batches.

    Parameters
    ----------
    names
        Names of the estimates.
    seed
        Names all weights: 0 to 2**64 - 1.
    replicates
        Their number, a multiple of 4.
    threads
        How many compute; None: one per core. The result does not depend on it.

    Raises
    ------
    InvalidInputError
        For no or equal names, a seed out of range, or a wrong number of replicates or threads.

    Notes
    -----
    Poisson bootstrap: Hanley & MacGibbon, Creating non-parametric bootstrap samples using
    Poisson frequencies, 2006; Chamandy et al., Estimating uncertainty for massive data streams,
    2012. O(rows replicates columns) time, O(replicates columns) memory; an estimate takes one
    column if it is a mean, and one more each for denominators and offsets.

    Examples
    --------
    >>> rows = np.arange(100.0)
    >>> found = Bootstrap(["mean"], seed=1, replicates=400)
    >>> found.add({"mean": Terms(rows, np.ones(100))})
    >>> interval = found.interval("mean")
    >>> interval.low < 49.5 < interval.high
    True
    """

    def __init__(
        self, names: Sequence[str], *, seed: int, replicates: int = 1000, threads: int | None = None
    ) -> None:
        if not names or len(set(names)) < len(names):
            raise InvalidInputError("needs names that differ", field="names")
        if not 0 <= seed < 1 << 64:
            raise InvalidInputError(f"must lie in 0 .. 2**64 - 1, got {seed}", field="seed")
        if replicates < 40 or replicates % 4:
            raise InvalidInputError(
                f"must be a multiple of 4, at least 40, got {replicates}", field="replicates"
            )
        if threads is not None and threads < 1:
            raise InvalidInputError(f"must be at least 1, got {threads}", field="threads")
        self.n = 0
        self.names = tuple(names)
        self.threads = threads or os.cpu_count() or 1
        self._seed = np.array([seed & 0xFFFFFFFF, seed >> 32], dtype=np.uint32)
        self._places = {name: (i + 1, 0, -1) for i, name in enumerate(names)}
        """Columns of numerators, denominators (0: ones) and offsets (-1: none)."""
        m = len(names) + 1
        self._sums = np.zeros((replicates // 4, 4, m))
        self._totals = np.zeros(m)
        self._pending = np.zeros((0, m))
        self._pending_names = np.zeros(0, dtype=np.int64)

    def add(self, terms: Mapping[str, Terms], clusters: Ints | None = None) -> None:
        """Gather a batch of rows.

        Parameters
        ----------
        terms
            Those of every estimate, all with the same rows.
        clusters : (n,)
            Names of what is drawn as a whole, such as customers; None: every row for itself.

        Raises
        ------
        InvalidInputError
            If an estimate is missing or unknown, lengths differ, or a number is not finite:
            naming estimate and row.
        """
        if set(terms) != set(self.names):
            raise InvalidInputError(
                f"need {', '.join(self.names)}; got {', '.join(terms)}", field="terms"
            )
        parts: dict[str, Floats] = {}
        for name in self.names:
            try:
                parts[name] = columns_of(terms[name], start=self.n)
            except InvalidInputError as error:
                raise error.under(f"terms.{name}") from None
        n = len(parts[self.names[0]])
        for name, part in parts.items():
            if len(part) != n:
                raise InvalidInputError(
                    f"has {len(part)} rows, {self.names[0]!r} has {n}", field=f"terms.{name}"
                )
        names = np.arange(self.n, self.n + n) if clusters is None else np.asarray(clusters)
        if len(names) != n or names.dtype.kind not in "iu":
            raise InvalidInputError(f"must be {n} whole numbers", field="clusters")
        self._widen(parts)
        self.n += n
        self._gather(self._laid_out(parts), names.astype(np.int64))

    def _widen(self, parts: Mapping[str, Floats]) -> None:
        """Give denominators and offsets that are no longer 1 and 0 a column of their own.

        Until then its sums are those of ones or zeros, to the last bit.
        """
        for name, part in parts.items():
            numerator, denominator, offset = self._places[name]
            if denominator == 0 and not (part[:, 1] == 1.0).all():
                denominator = self._append(1.0)
            if offset == -1 and part[:, 2].any():
                offset = self._append(0.0)
            self._places[name] = numerator, denominator, offset

    def _append(self, times: float) -> int:
        """Append a column that is so far ``times`` that of ones; give its place."""
        self._sums = np.concatenate([self._sums, times * self._sums[..., :1]], axis=-1)
        self._totals = np.append(self._totals, times * self._totals[0])
        self._pending = np.hstack([self._pending, times * self._pending[:, :1]])
        return len(self._totals) - 1

    def _laid_out(self, parts: Mapping[str, Floats]) -> Floats:
        rows = np.ones((len(parts[self.names[0]]), len(self._totals)))
        for name, part in parts.items():
            for source, place in enumerate(self._places[name]):
                if place > 0:
                    rows[:, place] = part[:, source]
        return rows

    def _gather(self, rows: Floats, names: Ints) -> None:
        rows = np.concatenate([self._pending, rows])
        names = np.concatenate([self._pending_names, names])
        whole = len(rows) - len(rows) % resampling.ROWS
        self._sum_up(rows[:whole], names[:whole], self._sums, self._totals)
        self._pending, self._pending_names = rows[whole:].copy(), names[whole:].copy()

    def _sum_up(self, rows: Floats, names: Ints, sums: Floats, totals: Floats) -> None:
        if not len(rows):
            return
        resampling.add_totals(rows, totals)
        groups = len(sums)
        threads = min(self.threads, groups) if len(rows) * groups * 4 > _SMALL else 1
        cuts = [groups * i // threads for i in range(threads + 1)]

        def compute(i: int) -> None:
            part = sums[cuts[i] : cuts[i + 1]]
            resampling.add_replicates(self._seed, cuts[i], names, rows, part)

        if threads == 1:
            compute(0)
            return
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(compute, range(threads)))

    def _state(self) -> tuple[Floats, Floats]:
        """Give sums of all rows so far: (replicates, m) and (m,)."""
        sums, totals = self._sums.copy(), self._totals.copy()
        self._sum_up(self._pending, self._pending_names, sums, totals)
        return sums.reshape(-1, sums.shape[-1]), totals

    def value(self, name: str) -> float:
        """Give the estimate itself."""
        _, totals = self._state()
        return float(self._values(name, totals[None, :])[0])

    def replicates(self, name: str) -> Floats:
        """Give the estimate in every replicate, (replicates,); NaN where no row has weight."""
        return self._values(name, self._state()[0])

    def _values(self, name: str, sums: Floats) -> Floats:
        numerator, denominator, offset = self._places[name]
        below = sums[:, denominator]
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = sums[:, numerator] / np.where(below > 0.0, below, np.nan)
            return found if offset < 0 else found + sums[:, offset] / sums[:, 0]

    def interval(self, name: str, level: float = 0.95, kind: str = "bca") -> Interval:
        """Give the interval of one estimate.

        Parameters
        ----------
        kind
            ``percentile``: quantiles of the replicates; ``bca``: these, corrected for bias and
            skewness.

        Raises
        ------
        InvalidInputError
            With fewer than two rows, more than 1 % of replicates without weight, replicates
            that all say the same, too few replicates for the level, or an unknown kind.

        Notes
        -----
        Efron, Better bootstrap confidence intervals, JASA 82, 1987.
        """
        alpha = check_level(level)
        if kind not in KINDS:
            raise InvalidInputError(f"{kind!r} is not one of {', '.join(KINDS)}", field="kind")
        if self.n < 2:
            raise InvalidInputError(f"needs 2 rows, there are {self.n}", field=f"terms.{name}")
        sums, totals = self._state()
        replicates = self._values(name, sums)
        if alpha / 2 * len(replicates) < 1.0:
            raise InvalidInputError(
                f"{len(replicates)} replicates are too few for level {level}", field="replicates"
            )
        kept = np.isfinite(replicates)
        if kept.mean() < 1.0 - _LOST:
            raise InvalidInputError(
                f"no row has weight in {len(kept) - kept.sum()} of {len(kept)} replicates: too "
                "few rows carry weight for a bootstrap",
                field=f"terms.{name}",
            )
        value = float(self._values(name, totals[None, :])[0])
        if np.ptp(replicates[kept]) <= 1e-14 * abs(value):
            raise InvalidInputError(
                f"all rows say {value}: their spread is unknown; an interval with a declared "
                "range (empirical_bernstein, betting) still holds",
                field=f"terms.{name}",
            )
        tails = np.array([alpha / 2, 1.0 - alpha / 2])
        if kind == "bca":
            linear = self._linear(name, sums, totals)[kept]
            tails = _corrected(tails, replicates[kept], value, linear)
        low, high = np.quantile(replicates[kept], tails)
        return Interval(float(low), float(high), kind, level)

    def _linear(self, name: str, sums: Floats, totals: Floats) -> Floats:
        """Give what replicates of the linearised estimate differ by from it, up to a factor."""
        numerator, denominator, offset = self._places[name]
        ratio = totals[numerator] / totals[denominator]
        found: Floats = (sums[:, numerator] - ratio * sums[:, denominator]) / totals[denominator]
        if offset < 0:
            return found
        found += sums[:, offset] / totals[0] - totals[offset] * sums[:, 0] / totals[0] ** 2
        return found


def _corrected(tails: Floats, replicates: Floats, value: float, linear: Floats) -> Floats:
    """Move the tail probabilities for bias and skewness: BCa.

    The acceleration is a sixth of the skewness of the linearised estimate, ``sum l**3 / (sum
    l**2)**1.5`` over rows. Poisson weights have variance 1 and third moment 1, so this is also
    the skewness of its replicates, and no row has to be kept.
    """
    below = (np.sum(replicates < value) + 0.5 * np.sum(replicates == value)) / len(replicates)
    edge = 0.5 / len(replicates)
    bias = float(special.ndtri(min(max(below, edge), 1.0 - edge)))
    spread = float(np.mean(linear**2))
    acceleration = float(np.mean(linear**3)) / spread**1.5 / 6.0
    moved = bias + special.ndtri(tails)
    room = np.maximum(1.0 - acceleration * moved, 1e-3)
    found: Floats = special.ndtr(bias + moved / room)
    return found


def bootstrap(
    terms: Mapping[str, Terms],
    seed: int,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    kind: str = "bca",
) -> dict[str, Interval]:
    """Give bootstrap intervals of estimates on rows in memory; see ``Bootstrap``."""
    found = Bootstrap(list(terms), seed=seed, replicates=replicates)
    found.add(terms)
    return {name: found.interval(name, level, kind) for name in terms}
