"""A rollout as many shards: in any number of processes, kept as they finish, gone on with later."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from bandit.errors import UnavailableError
from sims.backends import Backend
from sims.rollouts import shelving
from sims.rollouts.plan import Plan
from sims.rollouts.records import Rollout
from sims.rollouts.shelving import Arrays, Shard, Shelf
from sims.rollouts.tasks import reduce, task
from sims.rollouts.tracks import COUNTS, SUMS, Track

SHARD_SECONDS = 3.0
"""How long a shard should take: long beside its overhead, short beside what a kill may lose."""

FOLDER = "shards"
_MEASURED_SECONDS = 0.1
_FIRST_CUSTOMERS = 64
_here = Backend()
_log = logging.getLogger(__name__)


def played(
    plan: Plan,
    how: Backend = _here,
    *,
    folder: Path | None = None,
    passed: Callable[[int], None] | None = None,
    told: Callable[[str], None] = _log.warning,
) -> Rollout:
    """Play all replications somewhere; the same bits, wherever and in however many shards.

    Parameters
    ----------
    how
        Where.
    folder
        Finished shards are kept in its ``shards``, and those that are there already are taken.
    passed
        Told how many decisions were made since it was told last.
    told
        Told what was taken or not taken from the folder.

    Raises
    ------
    UnavailableError
        If a worker dies or a cluster can not be reached.
    """
    shelf = None if folder is None else Shelf(folder / FOLDER, shelving.key_of(plan))
    tracks = {} if shelf is None else _taken(plan, shelf, told)
    each = plan.customers * len(plan.policies)
    note = passed or _nothing
    note(each * sum(shard.stop - shard.first for shard in tracks))
    todo = _cut(plan, list(tracks), how, is_kept=shelf is not None)
    inside = passed if how.kind == "here" else None
    try:
        for place, track in how.run(partial(_play, plan, shelving.code(), inside), todo):
            if shelf is not None:
                shelf.put(todo[place], track._asdict())
            tracks[todo[place]] = track
            if inside is None:
                note(each * (todo[place].stop - todo[place].first))
    except UnavailableError as error:
        raise UnavailableError(f"{error}; {_state(plan, tracks, shelf)}") from error
    except KeyboardInterrupt:
        told(f"interrupted; {_state(plan, tracks, shelf)}")
        raise
    return reduce(plan, [tracks[shard] for shard in sorted(tracks)])


def seconds_of(plan: Plan) -> float:
    """Measure about how long one replication computes; that also compiles what it needs.

    So kernels are in the cache on disk before workers start, which read them from there.
    """
    customers = min(plan.customers, _FIRST_CUSTOMERS)
    _play_some(plan, customers)
    while True:
        start = time.process_time()
        _play_some(plan, customers)
        taken = time.process_time() - start
        if taken >= _MEASURED_SECONDS or customers == plan.customers:
            return taken * plan.customers / customers
        customers = min(plan.customers, 4 * customers)


def _play_some(plan: Plan, customers: int) -> None:
    task(replace(plan, customers=customers, replications=1, checkpoints=()), Shard(0, 1))


def _cut(plan: Plan, done: list[Shard], how: Backend, *, is_kept: bool) -> list[Shard]:
    """Cut what is left into shards of a few seconds, and at least one for every worker."""
    left = shelving.gaps(sorted(done), plan.replications)
    size = 1
    if left and (is_kept or how.kind != "here"):
        some = round(SHARD_SECONDS / max(seconds_of(plan), 1e-9))
        replications = sum(gap.stop - gap.first for gap in left)
        size = max(1, min(some, -(-replications // how.workers)))
    return shelving.cut(left, size)


def _play(plan: Plan, code: str, passed: Callable[[int], None] | None, shard: Shard) -> Track:
    """Play a shard in a worker, which must be of this version."""
    if shelving.code() != code:
        raise UnavailableError(
            "a worker runs another version of this program or its libraries, and may give other "
            "bits; install the same on all"
        )
    return task(plan, shard, passed)


def _taken(plan: Plan, shelf: Shelf, told: Callable[[str], None]) -> dict[Shard, Track]:
    found = shelf.find(plan.replications, partial(_fits, plan))
    for note in found.notes:
        told(note)
    tracks = {shard: Track(**arrays) for shard, arrays in found.shards.items()}
    if tracks:
        told(f"{_count(tracks)} of {plan.replications} replications were found in {shelf.folder}")
    return tracks


def _fits(plan: Plan, shard: Shard, arrays: Arrays) -> bool:
    """Tell whether arrays have the names, types and shapes of a track."""
    p, r, c = len(plan.policies), shard.stop - shard.first, len(plan.checkpoints)
    wanted: dict[str, tuple[tuple[int, ...], type]] = {"replications": ((r,), np.int64)}
    wanted |= dict.fromkeys(SUMS, ((p, r, c), np.float64))
    wanted |= dict.fromkeys(COUNTS, ((p, r, c), np.int64))
    wanted |= dict.fromkeys(("counts", "count_squares"), ((p, c, plan.spec.actions.size), np.int64))
    found = {name: (array.shape, array.dtype.type) for name, array in arrays.items()}
    return found == wanted and arrays["replications"].tolist() == list(range(*shard))


def _state(plan: Plan, tracks: dict[Shard, Track], shelf: Shelf | None) -> str:
    if shelf is None:
        return "nothing was kept, since no folder was given"
    return (
        f"{_count(tracks)} of {plan.replications} replications are kept in {shelf.folder}; run the "
        "same again to go on"
    )


def _count(tracks: dict[Shard, Track]) -> int:
    return sum(shard.stop - shard.first for shard in tracks)


def _nothing(_: int) -> None:
    pass
