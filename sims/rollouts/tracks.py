"""What is kept of every replication: sums at the checkpoints."""

from typing import Any, NamedTuple

import numpy as np

from bandit.kernels.compiling import Floats, Ints
from sims.rollouts.stage import Played

SUMS = ("value", "optimum", "reward", "squares")
COUNTS = ("known", "best", "nothing")
_TIE = 1e-12


class Track(NamedTuple):
    """What a shard of replications found, p policies at c checkpoints.

    Attributes
    ----------
    replications : (r,)
        Which ones.
    value, optimum : (p, r, c)
        Sums, up to each checkpoint, of the expected outcome of what was chosen and of the best
        eligible action; their difference is the regret.
    reward, squares : (p, r, c)
        Sums of the outcomes that were heard of, and of their squares.
    known, best, nothing : (p, r, c)
        Customers whose outcome was heard of, who got a best action, who got nothing.
    counts, count_squares : (p, c, k)
        Customers of every action since the checkpoint before: sums over the replications of
        their number and of its square.
    """

    replications: Ints
    value: Floats
    optimum: Floats
    reward: Floats
    squares: Floats
    known: Ints
    best: Ints
    nothing: Ints
    counts: Ints
    count_squares: Ints


class Tracker:
    """Adds up what one policy does in one replication.

    Parameters
    ----------
    checkpoints : (c,)
        Customers after which sums are kept.
    actions
        How many there are.
    """

    def __init__(self, checkpoints: Ints, actions: int) -> None:
        self._checkpoints = checkpoints
        self._so_far = dict.fromkeys((*SUMS, *COUNTS), 0.0)
        self._done = 0
        self.at = {name: np.zeros(len(checkpoints)) for name in (*SUMS, *COUNTS)}
        self.counts = np.zeros((len(checkpoints), actions), dtype=np.int64)

    def add(self, played: Played) -> None:
        """Take in the next customers."""
        start, n = self._done, len(played.actions)
        heard = ~np.isnan(played.rewards)
        rewards = np.where(heard, played.rewards, 0.0)
        sent = played.actions >= 0
        near = played.best - played.values <= _TIE * (1.0 + np.abs(played.best))
        columns = {
            "value": played.values,
            "optimum": played.best,
            "reward": rewards,
            "squares": rewards * rewards,
            "known": heard,
            "best": near & sent,
            "nothing": ~sent,
        }
        first, last = np.searchsorted(self._checkpoints, [start, start + n], side="right")
        places = self._checkpoints[first:last] - start - 1
        for name, column in columns.items():
            sums = self._so_far[name] + np.cumsum(column)
            self.at[name][first:last] = sums[places]
            self._so_far[name] = float(sums[-1])
        k = self.counts.shape[1]
        interval = np.searchsorted(self._checkpoints, np.arange(start, start + n), side="right")
        cells = (interval[sent] - first) * k + played.actions[sent]
        rows = min(last + 1, len(self._checkpoints)) - first
        found = np.bincount(cells, minlength=rows * k).reshape(rows, k)
        self.counts[first : first + rows] += found
        self._done += n


def joined_policies(replication: int, trackers: list[Tracker]) -> Track:
    """Give one replication of all policies."""
    sums: dict[str, Any] = {
        name: np.array([t.at[name] for t in trackers])[:, None] for name in SUMS
    }
    whole: dict[str, Any] = {
        name: np.array([t.at[name] for t in trackers]).astype(np.int64)[:, None] for name in COUNTS
    }
    counts = np.array([t.counts for t in trackers])
    return Track(
        replications=np.array([replication]),
        **sums,
        **whole,
        counts=counts,
        count_squares=counts * counts,
    )


def combined(tracks: list[Track]) -> Track:
    """Put shards together in their order; counts add up exactly, so any split gives the same."""
    sums: dict[str, Any] = {
        name: np.concatenate([getattr(t, name) for t in tracks], axis=1) for name in SUMS
    }
    whole: dict[str, Any] = {
        name: np.concatenate([getattr(t, name) for t in tracks], axis=1) for name in COUNTS
    }
    return Track(
        replications=np.concatenate([t.replications for t in tracks]),
        **sums,
        **whole,
        counts=sum((t.counts for t in tracks[1:]), start=tracks[0].counts),
        count_squares=sum((t.count_squares for t in tracks[1:]), start=tracks[0].count_squares),
    )
