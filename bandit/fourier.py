"""Random Fourier features: a non-linear score that is still linear in its weights.

See ``docs/math/fourier-features.md``.
"""

from dataclasses import dataclass

from bandit import rng
from bandit.errors import InvalidInputError
from bandit.kernels import contexts
from bandit.kernels.compiling import Floats

MAX_FEATURES = 1_024

# Public on purpose: features must be a function of the specification alone, never of the secret.
_STREAM = rng.words(rng.keyed(b"", "fourier", "", b"matern")[:16])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fourier:
    """Features that approximate a Matern-3/2 kernel over the encoded context.

    Parameters
    ----------
    features
        Number of columns, a cosine and a sine for each frequency; even.
    length_scale
        Distance over which the score may change, as a root mean square over the fields;
        encoded numbers span [-1, 1].

    Raises
    ------
    InvalidInputError
        If a value is out of range, or ``features`` is odd.
    """

    features: int = 128
    length_scale: float = 0.5

    def __post_init__(self) -> None:
        if not 2 <= self.features <= MAX_FEATURES or self.features % 2:
            raise InvalidInputError(
                f"must be even and in [2, {MAX_FEATURES}], got {self.features}", field="features"
            )
        if not 1e-2 <= self.length_scale <= 1e2:
            raise InvalidInputError(
                f"must be in [0.01, 100], got {self.length_scale}", field="length_scale"
            )

    @property
    def names(self) -> list[str]:
        """Names of the columns, in order."""
        pairs = range(1, self.features // 2 + 1)
        return [name for i in pairs for name in (f"(cos {i})", f"(sin {i})")]

    def frequencies(self, columns: int, fields: int) -> Floats:
        """Give the frequencies, in turns per unit of each encoded column.

        Parameters
        ----------
        columns
            Encoded columns, without the intercept.
        fields
            Fields they stand for.

        Returns
        -------
        (columns, features / 2)

        Notes
        -----
        A frequency is the same however many follow it. O(features columns**2) at most.
        """
        scale = self.length_scale * float(fields) ** 0.5
        drawn = contexts.frequencies(_STREAM, columns, self.features // 2)
        turns: Floats = drawn / (6.283185307179586 * scale)
        return turns
