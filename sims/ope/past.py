"""Reward models that see only earlier rows, for logs of a policy that learned.

There a row's action depends on earlier rewards. A model that saw later rows knows more of the
row than its past does, and DR scores are no longer fair: see docs/math/adaptive-logs.md.
"""

import numpy as np
from threadpoolctl import threadpool_limits

from bandit.kernels.compiling import Floats, Ints
from sims.log import Log, taken
from sims.ope.design import Contexts
from sims.ope.models import Predictor, RewardModel, fitted_on, kind_of

HALVINGS = 4
"""Stretches double in length, from a sixteenth of the log: so few fits, and late rows have good
ones."""

FEWEST = 50
"""Rows that a first model needs."""


class FittedInOrder:
    """A model of every stretch of a log, fitted on all rows before it.

    Parameters
    ----------
    starts : (parts,)
        Number of the first row that a part predicts; before the first of them no model is, and
        0 is predicted: there DR is IPS.
    parts
        What standardises and predicts.
    """

    def __init__(self, starts: Ints, parts: list[tuple[Contexts, Predictor]]) -> None:
        self.starts, self.parts = starts, parts

    def predict(self, log: Log, numbers: Ints) -> Floats:
        """Give what every action is expected to earn, by a model of earlier rows, (n, k).

        Parameters
        ----------
        numbers : (n,)
            Of the rows in the whole log, from 0.
        """
        found = np.zeros((len(log), log.size))
        which = np.searchsorted(self.starts, numbers, side="right") - 1
        with threadpool_limits(1, user_api="blas"):  # the same bits however many cores
            for place, (contexts, part) in enumerate(self.parts):
                here = np.flatnonzero(which == place)
                if len(here):
                    found[here] = part.predict(contexts.columns(taken(log, here)))
        return found


def fit_in_order(
    model: RewardModel, sample: Log, numbers: Ints, *, end: int, seed: int
) -> FittedInOrder:
    """Fit a model for every stretch of the log, on the rows of the sample before it.

    Parameters
    ----------
    sample, numbers
        Rows, and their numbers in the log, increasing; see ``sampling.Sample``.
    end
        Number of rows of the log.
    seed
        Names the draws of boosted trees.

    Raises
    ------
    InvalidInputError
        If the rewards do not fit the kind of the model.
    """
    kind_of(model, sample.rewards)
    starts: list[int] = []
    parts: list[tuple[Contexts, Predictor]] = []
    for start in (end >> halvings for halvings in range(HALVINGS, 0, -1)):
        rows = int(np.searchsorted(numbers, start))
        if rows < FEWEST:
            continue
        past = taken(sample, slice(0, rows))
        contexts = Contexts(past, model.encode)
        kind = kind_of(model, past.rewards)
        starts.append(start)
        parts.append((contexts, fitted_on(model, kind, contexts.columns(past), past, seed)))
    return FittedInOrder(np.array(starts, dtype=np.int64), parts)
