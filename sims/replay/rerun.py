"""Exact re-run of a log of our own: every decision made again from what was known then.

From the export of an experiment, what its learner learned (``banditctl export --learned``), the
specification in the file and the secret: outcomes are folded in log order, the belief is
published where the server published it, and every decision is made again. Actions, propensities,
groups and reasons are compared bit for bit, and so are the published beliefs, by their digest.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bandit import encoding, rng, spec_file
from bandit.decision import Group, Reason
from bandit.errors import BanditError, InvalidInputError
from bandit.experiment import Experiment
from bandit.kernels.compiling import Bools, Ints
from bandit.posterior import Posterior
from bandit.question import Questions
from bandit.snapshot import Snapshot
from bandit.spec import ExperimentSpec
from sims.log.columns import codes, numbers, whole
from sims.log.sieve import Sieve
from sims.log.tables import Batch, Source
from sims.replay import decided

KINDS = ("base", "outcome", "snapshot", "anew")
SHOWN = 100
"""Differences that are told; all are counted."""

_LEARNED = (
    *("sequence", "kind", "decision_sequence", "value", "replaced", "version", "digest"),
    "posterior",
)
_STEP = 4_096

Step = Callable[[int, int], None]


class Difference(NamedTuple):
    """Something that did not come out again.

    Attributes
    ----------
    file, row, column
        Where it stands; rows count from 1.
    logged, again
        What is there, and what came out.
    """

    file: str
    row: int
    column: str
    logged: str
    again: str

    def __str__(self) -> str:
        return (
            f'{self.file}: row {self.row}, column "{self.column}": '
            f"{self.logged} is logged, and {self.again} comes out"
        )


@dataclass(slots=True)
class Rerun:
    """What a re-run found.

    Attributes
    ----------
    decisions
        In the log.
    repeated
        Those that came out again, bit for bit.
    dropped
        Those of beliefs from before the base that retention left: they can not be repeated.
    undone
        Those that were not tried, because their belief did not come out again.
    outcomes, snapshots
        Folded, and published again bit for bit.
    wrong
        How many differences there are.
    differences
        The first of them, in order of rows.
    """

    decisions: int = 0
    repeated: int = 0
    dropped: int = 0
    undone: int = 0
    outcomes: int = 0
    snapshots: int = 0
    wrong: int = 0
    differences: list[Difference] = field(default_factory=list)


class _Lesson(NamedTuple):
    """A row of what was learned."""

    row: int
    sequence: int
    kind: str
    decision: int
    value: float
    replaced: float
    version: int
    digest: bytes
    posterior: bytes


def described(log: Path) -> tuple[ExperimentSpec, str]:
    """Give the experiment and the tenant that an exported log says it is of.

    Raises
    ------
    InvalidInputError
        If it says none.
    """
    told = Source(log).metadata
    if "banditctl.spec" not in told:
        raise InvalidInputError(
            "does not say which experiment it is of: it is not what 'banditctl export' writes",
            field=str(log),
        )
    spec = spec_file.parse(told["banditctl.spec"], "json")
    return spec, told.get("banditctl.tenant", "default")


def revisions(log: Path, newest: ExperimentSpec) -> list[tuple[int, ExperimentSpec]]:
    """Read the specifications that decided what is in a log, each with its first snapshot.

    An experiment that was never edited while it ran has the one it is exported with.

    Raises
    ------
    InvalidInputError
        If they can not be read, or do not follow each other up to the newest.
    """
    written = Source(log).metadata.get("banditctl.revisions")
    if written is None:
        return [(0, newest)]
    try:
        listed = json.loads(written)
        found = [(one["version"], spec_file.from_data(one["spec"])) for one in listed]
        versions = [int(version) for version, _ in found]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"its revisions can not be read: {error}", field=str(log)) from None
    is_rising = all(low < high for low, high in pairwise(versions))
    if not found or versions[0] != 0 or not is_rising or found[-1][1] != newest:
        raise InvalidInputError(
            "its revisions must follow each other, from snapshot 0 up to its specification",
            field=str(log),
        )
    return found


def rerun(log: Path, learned: Path, experiment: Experiment, step: Step | None = None) -> Rerun:
    """Make every decision of an exported log again.

    Parameters
    ----------
    log, learned
        As ``banditctl export --learned`` writes them.
    experiment
        The experiment, with its tenant's secret.
    step
        Told of progress: decisions done, and in all.

    Raises
    ------
    InvalidInputError
        If a file is not what it should be; differences are no error but the finding.

    Notes
    -----
    Customer, context and rules are held against the hash of the request, ids against request
    and time. What can not be seen: another outcome that nobody learned from, such as a baseline
    customer's. ``banditctl verify`` has the reward events, and derives outcomes from them.
    """
    return _Runner(log, learned, experiment, step).run()


class _Runner:
    """A re-run under way."""

    def __init__(self, log: Path, learned: Path, experiment: Experiment, step: Step | None) -> None:
        self._names = str(log), str(learned)
        self._experiment = experiment
        self._stages = [
            (version, Experiment(spec, secret=experiment.secret))
            for version, spec in revisions(log, experiment.spec)
        ]
        self._stage = 0
        self._step = step
        self._decided = decided.read(Source(log), experiment.spec)
        self._lessons = _lessons(Source(learned))
        self._found = Rerun(decisions=len(self._decided.sequence))
        self._order = np.argsort(self._decided.versions, kind="stable")
        self._sorted = self._decided.versions[self._order]
        self._tried = np.zeros(len(self._order), dtype=np.bool_)

    def run(self) -> Rerun:
        self._check_ids()
        self._check_hashes()
        found = self._found
        is_sound = self._refold()
        left = ~self._tried
        if is_sound and left.any():
            self._tell(left, "snapshot_version", lambda _: "no such snapshot in what was learned")
        else:
            found.undone = int(left.sum())
        self._check_outcomes()
        found.differences.sort(key=lambda one: (one.file != self._names[0], one.row))
        return found

    def _tell(
        self,
        bad: Bools,
        column: str,
        again: Callable[[int], str],
        logged: Any = None,  # noqa: ANN401
    ) -> None:
        """Note decisions that differ in one column."""
        places = np.flatnonzero(bad)
        self._found.wrong += len(places)
        values = getattr(self._decided, _FIELDS[column]) if logged is None else logged
        for i in places[:SHOWN].tolist():
            shown = _SHOWN.get(column, _shown)(values[i])
            self._differ(Difference(self._names[0], i + 1, column, shown, again(i)))

    def _differ(self, difference: Difference) -> None:
        if len(self._found.differences) < SHOWN:
            self._found.differences.append(difference)

    # --- ids and outcomes ---------------------------------------------------------------

    def _check_ids(self) -> None:
        """Compare decision ids with those that the requests give at that time."""
        d, spec = self._decided, self._experiment.spec
        for start in range(0, len(d.requests), _STEP):
            part = slice(start, start + _STEP)
            ids = rng.decision_ids(self._experiment.secret, spec.name, d.requests[part], 0)
            stamps = (d.decided_at[part] // 1_000).astype(">u8").view(np.uint8).reshape(-1, 8)
            ids[:, :6] = stamps[:, 2:]
            bad = np.zeros(len(d.requests), dtype=np.bool_)
            bad[part] = (ids != d.ids[part]).any(axis=1)
            if bad.any():
                self._tell(
                    *(bad, "decision_id"),
                    lambda i, ids=ids, start=start: (  # type: ignore[misc]
                        f"{decided.shown_id(ids[i - start])} of request and time"
                    ),
                )

    def _check_hashes(self) -> None:
        """Compare what was asked with its hash."""
        d = self._decided
        bad = np.array([not d.has_hash(i) for i in range(len(d.requests))])
        self._tell(bad, "request_hash", lambda _: "another one of customer, context and rules")

    def _check_outcomes(self) -> None:
        """Compare the newest outcome that was learned with that of the log."""
        d = self._decided
        known = {one.decision: one.value for one in self._lessons if one.kind == "outcome"}
        if not known or any(one.kind == "anew" for one in self._lessons):
            return  # after a rollback less is learned than is logged
        wanted = np.array(list(known))
        places = np.minimum(np.searchsorted(d.sequence, wanted), len(d.sequence) - 1)
        is_there = d.sequence[places] == wanted
        places, values = places[is_there], np.array(list(known.values()))[is_there]
        expected = np.full(len(d.sequence), np.nan)
        expected[places] = values
        bad = np.zeros(len(d.sequence), dtype=np.bool_)
        bad[places] = _bits(d.outcomes[places]) != _bits(values)
        self._tell(bad, "outcome", lambda i: f"{expected[i]!r} was learned")

    # --- beliefs ------------------------------------------------------------------------

    def _refold(self) -> bool:
        """Fold and publish as the server did; give whether every belief came out again."""
        base: _Lesson | None = None
        posterior, waiting = self._then.prior(), list[_Lesson]()
        self._decide(posterior, 0)
        for lesson in self._lessons:
            if lesson.kind == "outcome":
                waiting.append(lesson)
                if len(waiting) < _STEP:
                    continue
            if not self._learn(posterior, waiting):
                return False
            waiting = []
            if lesson.kind == "base":
                base = lesson
                self._stage = self._stage_of(lesson.version)
            if lesson.kind in ("base", "anew"):
                posterior = self._begin(base, lesson)
            if lesson.kind == "snapshot":
                posterior = self._move_on(posterior, lesson.version)
                posterior.seq = lesson.sequence
                if not self._is_again(posterior, lesson):
                    return False
                self._decide(posterior, lesson.version)
        return self._learn(posterior, waiting)

    def _is_again(self, posterior: Posterior, lesson: _Lesson) -> bool:
        """Compare a belief with what was published."""
        fresh = encoding.digest(encoding.to_bytes(posterior))
        if fresh == lesson.digest:
            self._found.snapshots += 1
            return True
        self._miss(lesson, "digest", lesson.digest.hex()[:16], fresh.hex()[:16])
        return False

    def _miss(self, lesson: _Lesson, column: str, logged: str, again: str) -> None:
        """Note a difference in what was learned."""
        self._found.wrong += 1
        self._differ(Difference(self._names[1], lesson.row, column, logged, again))

    @property
    def _then(self) -> Experiment:
        """The experiment as it was when what comes next was published."""
        return self._stages[self._stage][1]

    def _stage_of(self, version: int) -> int:
        """Give which specification a snapshot was published with."""
        return max((i for i, (first, _) in enumerate(self._stages) if first <= version), default=0)

    def _move_on(self, posterior: Posterior, version: int) -> Posterior:
        """Go on with the specification of a snapshot, and with what was learned before it."""
        stage = self._stage_of(version)
        if stage > self._stage:
            posterior = self._then.revise(posterior, self._stages[stage][1].spec)[1]
            self._stage = stage
        return posterior

    def _begin(self, base: _Lesson | None, lesson: _Lesson) -> Posterior:
        if base is None:
            return self._then.prior()
        written = self._stages[self._stage_of(base.version)][1]
        posterior = written.prior()
        try:
            encoding.load(posterior, base.posterior)
            if written is not self._then:
                posterior = written.revise(posterior, self._then.spec)[1]
        except BanditError as error:
            raise InvalidInputError(
                f"can not be read: {error}",
                field=f'{self._names[1]}: row {lesson.row}, column "posterior"',
            ) from None
        if lesson.kind == "base":  # what decided before it was dropped
            n = int(np.searchsorted(self._sorted, self._first_version()))
            gone = self._order[:n]
            self._found.dropped = int((~self._tried[gone]).sum())
            self._tried[gone] = True
        return posterior

    def _first_version(self) -> int:
        """Give the version of the first snapshot after the base."""
        versions = [one.version for one in self._lessons if one.kind == "snapshot"]
        return versions[0] if versions else 1 << 62

    def _learn(self, posterior: Posterior, lessons: list[_Lesson]) -> bool:
        """Fold outcomes; give whether all are of decisions that are there."""
        if not lessons:
            return True
        d, wanted = self._decided, np.array([one.decision for one in lessons])
        places = np.minimum(np.searchsorted(d.sequence, wanted), len(d.sequence) - 1)
        gone = (d.sequence[places] != wanted) | (d.actions[places] < 0)
        if gone.any():
            lesson = lessons[int(np.flatnonzero(gone)[0])]
            logged = f"an outcome of {lesson.decision}"
            self._miss(lesson, "decision_sequence", logged, "no action there")
            return False
        replaced = np.array([one.replaced for one in lessons])
        self._then.learn(
            posterior,
            d.rows[places],
            d.actions[places].tolist(),
            np.array([one.value for one in lessons]),
            times=d.decided_at[places] / 1e6,
            replaced=None if np.isnan(replaced).all() else replaced,
            seq=lessons[-1].sequence,
        )
        self._found.outcomes += len(lessons)
        return True

    # --- decisions ----------------------------------------------------------------------

    def _decide(self, posterior: Posterior, version: int) -> None:
        """Decide again what a belief decided."""
        low, high = np.searchsorted(self._sorted, [version, version + 1])
        if low == high:
            return
        snapshot = self._then.publish(posterior, version=version)
        mine = self._order[low:high]
        for start in range(0, len(mine), _STEP):
            part = mine[start : start + _STEP]
            for reason in np.unique(self._decided.reasons[part]).tolist():
                refused = Reason(reason) if reason in _OUTSIDE else None
                those = part[self._decided.reasons[part] == reason]
                self._compare(snapshot, those, refused)
            if self._step is not None:
                self._step(int(self._tried.sum()), self._found.decisions)

    def _compare(self, snapshot: Snapshot, places: Ints, refused: Reason | None) -> None:
        d = self._decided
        rules = [d.rules[i] for i in places.tolist()]
        asked = Questions(d.ids[places], d.customers[places], d.rows[places], rules)
        again = self._then.decide_columns(snapshot, asked, refused=refused)
        self._tried[places] = True
        bad = np.zeros(len(places), dtype=np.bool_)
        for column, fresh in (
            ("group", again.groups),
            ("reason", again.reasons),
            ("action", again.actions),
            ("propensity", again.propensity),
        ):
            logged = getattr(d, _FIELDS[column])[places]
            differs = (_bits(logged) != _bits(fresh)) & ~bad
            bad |= differs
            if differs.any():
                marked = np.zeros(len(d.sequence), dtype=np.bool_)
                marked[places[differs]] = True
                came = dict(zip(places.tolist(), fresh.tolist(), strict=True))
                show = _SHOWN.get(column, _shown)
                self._tell(marked, column, lambda i, came=came, show=show: show(came[i]))  # type: ignore[misc]
        self._found.repeated += int((~bad).sum())


_OUTSIDE = (Reason.PAUSED, Reason.STALE_SNAPSHOT)
_FIELDS = {
    "decision_id": "ids",
    "request_hash": "hashes",
    "snapshot_version": "versions",
    "group": "groups",
    "reason": "reasons",
    "action": "actions",
    "propensity": "propensities",
    "outcome": "outcomes",
}


def _shown(value: Any) -> str:  # noqa: ANN401
    return repr(value.item() if isinstance(value, np.generic) else value)


_SHOWN: dict[str, Callable[[Any], str]] = {
    "decision_id": decided.shown_id,
    "request_hash": lambda value: value.tobytes().hex(),
    "group": lambda value: Group(value).name.lower(),
    "reason": lambda value: Reason(value).name.lower(),
    "action": lambda value: "nothing" if value < 0 else str(value),
}


def _bits(values: Any) -> Ints:  # noqa: ANN401
    """Give numbers as their bits, so that equal means the same."""
    return np.ascontiguousarray(values).view(np.int64)


def _lessons(source: Source) -> list[_Lesson]:
    """Read what was learned.

    Raises
    ------
    InvalidInputError
        Naming row and column.
    """
    gone = [name for name in _LEARNED if name not in source.types]
    if gone:
        raise InvalidInputError(
            f"has no column {gone[0]!r}: it is not what 'banditctl export --learned' writes",
            field=str(source.path),
        )
    path = str(source.path)
    lessons = [one for batch in source.batches(_LEARNED) for one in _read(batch, path)]
    version: int | None = None
    for one in lessons:
        if one.kind == "snapshot":
            if version is not None and one.version != version + 1:
                raise InvalidInputError(
                    f"must follow version {version}, got {one.version}",
                    field=f'{path}: row {one.row}, column "version"',
                )
            version = one.version
    return lessons


def _read(batch: Batch, path: str) -> Iterator[_Lesson]:
    cells, sieve = batch.columns, Sieve(batch, path, exclude=False)
    kinds = codes(cells["kind"], KINDS)
    sieve.refuse(kinds < 0, "kind", f"must be one of {', '.join(KINDS)}")
    is_outcome, is_snapshot = kinds == 1, kinds == 2
    read: dict[str, list[Any]] = {}
    for name, needed in (
        ("sequence", np.ones(batch.size, dtype=np.bool_)),
        ("decision_sequence", is_outcome),
        ("version", is_snapshot),
    ):
        found = whole(cells[name])
        sieve.refuse(needed & (found.missing | found.broken), name, "needs a whole number")
        told = needed | ((kinds == 0) & (name == "version") & ~(found.missing | found.broken))
        read[name] = np.where(told, found.values, -1).astype(np.int64).tolist()
    for name, needed in (("value", is_outcome), ("replaced", np.zeros_like(is_outcome))):
        found = numbers(cells[name])
        bad = ~np.isfinite(found.values) & (needed | ~found.missing)
        sieve.refuse(bad, name, "must be a finite number")
        read[name] = np.where(found.missing, math.nan, found.values).tolist()
    for name, needed in (("digest", is_snapshot | (kinds == 0)), ("posterior", kinds == 0)):
        missing = cells[name].is_null().to_numpy(zero_copy_only=False)
        sieve.refuse(needed & missing, name, "needs bytes")
        read[name] = [one or b"" for one in cells[name].to_pylist()]
    rows = range(batch.first, batch.first + batch.size)
    names = [KINDS[kind] for kind in kinds.tolist()]
    columns = (read[n] for n in _LEARNED if n != "kind")
    for row, kind, (sequence, *rest) in zip(rows, names, zip(*columns, strict=True), strict=True):
        yield _Lesson(row, sequence, kind, *rest)
