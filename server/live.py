"""What decisions read: every experiment, its state and its published belief, in memory.

Entries are immutable and replaced whole, so a reader needs no lock and sees one moment: the
specification of an entry is always the one that its snapshot was published with.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from sqlalchemy.engine import Connection

from bandit import encoding, spec_file
from bandit.decision import Reason
from bandit.errors import BanditError, CorruptionError, NotFoundError, StateError
from bandit.experiment import Experiment
from bandit.posterior import Posterior
from bandit.rng import keyed
from bandit.snapshot import Snapshot
from server import catalogue
from server.catalogue import State
from server.clock import Clock, system_clock
from server.schema import AnyRow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiveExperiment:
    """One experiment as decisions see it.

    Attributes
    ----------
    id
        Of its row.
    tenant
        Whose it is.
    experiment
        Decides and learns.
    state, revision, created_at
        As stored.
    snapshot
        The published belief.
    published_at
        Microseconds since 1970; None for the prior.
    spec_revision
        Number of the revision that the specification is of.
    spec_version
        First snapshot that belongs to that revision.
    """

    id: int
    tenant: str
    experiment: Experiment
    state: State
    revision: int
    created_at: int
    snapshot: Snapshot
    published_at: int | None = None
    spec_revision: int = 1
    spec_version: int = 0

    @property
    def etag(self) -> str:
        """Changes with every change of the experiment."""
        return f"{self.id}-{self.revision}"


class Live:
    """All experiments by tenant and name.

    Parameters
    ----------
    secret
        Keys draws and groups of every experiment.
    clock
        Tells since when a belief may be out of date.

    Attributes
    ----------
    look_up
        Called for an experiment that is not here or not started: another process may have
        created or started it.
    """

    def __init__(self, secret: bytes, clock: Clock = system_clock) -> None:
        self.look_up: Callable[[str, str], None] = lambda _tenant, _name: None
        self._secret = secret
        self._clock = clock
        self._current: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._entries: dict[tuple[str, str], LiveExperiment] = {}
        self._lock = threading.Lock()

    def load(self, connection: Connection) -> None:
        """Read every experiment and its newest snapshot.

        Raises
        ------
        CorruptionError
            If a stored specification or posterior can not be read: nothing is guessed.
        """
        for row in catalogue.list_experiments(connection):
            self.take_in(connection, row)

    def take_in(self, connection: Connection, row: AnyRow) -> LiveExperiment:
        """Take in a stored experiment with its newest snapshot, unless it is here."""
        known = self._entries.get((row.tenant, row.name))
        if known is not None:
            return known
        experiment, state = self._read(row)
        return self._insert(
            _entry(row, experiment, state, *_restore(connection, row.id, experiment))
        )

    def catch_up(self, connection: Connection, row: AnyRow) -> LiveExperiment:
        """Take over an experiment's state, and with it an edit of its specification.

        Parameters
        ----------
        connection
            Sees one moment, in which it has read the row.
        """
        known = self._entries.get((row.tenant, row.name))
        if known is None:
            return self.take_in(connection, row)
        if row.spec_revision <= known.spec_revision:
            return self.set_state(row)
        experiment, state = self._read(row)
        return self._insert(
            _entry(row, experiment, state, *_restore(connection, row.id, experiment))
        )

    def refresh(self, connection: Connection, live: LiveExperiment) -> None:
        """Read an experiment's newest snapshot, and let decisions read it."""
        posterior, published = self.restore(connection, live)
        if published is not None:
            snapshot = live.experiment.publish(posterior, version=published.version)
            self.publish(live.id, snapshot, published.published_at)

    def restore(
        self, connection: Connection, live: LiveExperiment
    ) -> tuple[Posterior, catalogue.Published | None]:
        """Read an experiment's newest posterior, or give the prior if there is none.

        Raises
        ------
        ChangedError
            If the experiment was edited since: the posterior is of another specification.
        CorruptionError
            If it can not be read.
        """
        catalogue.check_spec(connection, live.id, live.spec_revision)
        return _restore(connection, live.id, live.experiment)

    def add(self, row: AnyRow) -> LiveExperiment:
        """Take in a stored experiment, with the prior as its belief, unless it is here."""
        known = self._entries.get((row.tenant, row.name))
        if known is not None:
            return known
        experiment, state = self._read(row)
        return self._insert(_entry(row, experiment, state, experiment.prior(), None))

    def _insert(self, entry: LiveExperiment) -> LiveExperiment:
        """Let decisions read an entry, unless one of the same or a later revision is here."""
        with self._lock:
            key = _key(entry)
            known = self._entries.setdefault(key, entry)
            if known.spec_revision < entry.spec_revision:  # so all of it is newer
                self._entries[key] = entry
            elif known.spec_revision == entry.spec_revision and known.revision < entry.revision:
                self._entries[key] = replace(known, state=entry.state, revision=entry.revision)
            return self._entries[key]

    def _read(self, row: AnyRow) -> tuple[Experiment, State]:
        try:
            return self._build(row.spec, row.tenant), State(row.state)
        except (ValueError, TypeError, AttributeError, BanditError) as error:
            raise CorruptionError(f"experiment {row.name!r}: {error}") from None

    def check(self, written: str, tenant: str) -> None:
        """Refuse a specification that could not be taken in once it is stored.

        Raises
        ------
        InvalidInputError
            If it can not be read back, or decides on nothing.
        """
        experiment = self._build(written, tenant)
        experiment.publish(experiment.prior(), version=0)

    def _build(self, written: str, tenant: str) -> Experiment:
        return Experiment(
            spec_file.parse(written, "json"), secret=tenant_secret(self._secret, tenant)
        )

    def find(self, tenant: str, name: str, field: str = "experiment") -> LiveExperiment:
        """Give one experiment; ``field`` is the path that an error names.

        Raises
        ------
        NotFoundError
            If the tenant has none of this name.
        """
        entry = self._entries.get((tenant, name))
        if entry is None or entry.state is State.DRAFT:
            self.look_up(tenant, name)
            entry = self._entries.get((tenant, name))
        if entry is None:
            raise NotFoundError(f"no experiment {name[:64]!r}", field=field)
        return entry

    def here(self, tenant: str, name: str) -> LiveExperiment | None:
        """Give one experiment as ``find`` does, or None if the database may have to be asked."""
        entry = self._entries.get((tenant, name))
        return None if entry is None or entry.state is State.DRAFT else entry

    def entries(self) -> list[LiveExperiment]:
        """Give all experiments, in order of tenant and name."""
        return [entry for _, entry in sorted(self._entries.items())]

    def set_state(self, row: AnyRow) -> LiveExperiment:
        """Take over a changed state, unless a later change was; give what this change made.

        A row with another specification is not taken over: that is for ``catch_up``.
        """
        with self._lock:
            entry = self._by_id(row.id)
            changed = replace(entry, state=State(row.state), revision=row.revision)
            if row.revision > entry.revision and row.spec_revision == entry.spec_revision:
                self._entries[_key(entry)] = changed
        return changed

    def publish(self, experiment_id: int, snapshot: Snapshot, at: int) -> None:
        """Let decisions read another belief."""
        with self._lock:
            entry = self._by_id(experiment_id)
            if snapshot.version > entry.snapshot.version:
                self._entries[_key(entry)] = replace(entry, snapshot=snapshot, published_at=at)

    def confirm(self, experiment_id: int, at: int) -> None:
        """Note that every outcome closed before ``at`` is in the published belief."""
        self._current[experiment_id] = at

    def confirmed_at(self, experiment_id: int) -> int | None:
        """Give the last moment for which ``confirm`` said so, or None."""
        return self._current.get(experiment_id)

    def current_at(self, experiment_id: int) -> int:
        """Give the last moment for which ``confirm`` said so; the first look if none."""
        known = self._current.get(experiment_id)
        return self._seen.setdefault(experiment_id, self._clock()) if known is None else known

    def refused(self, live: LiveExperiment) -> Reason | None:
        """Say why an experiment decides for nobody at the moment; None: it decides.

        Raises
        ------
        StateError
            If it does not even answer its fallback: it has not started, or has ended.
        """
        if live.state is State.RUNNING:
            age = live.experiment.spec.publishing.max_age
            if age is None:
                return None
            is_stale = self._clock() - self.current_at(live.id) > age * 1e6
            return Reason.STALE_SNAPSHOT if is_stale else None
        if live.state is State.PAUSED:
            return Reason.PAUSED
        hint = "start it first" if live.state is State.DRAFT else "it decides no more"
        raise StateError(
            f"experiment {live.experiment.spec.name!r} is {live.state.name}; {hint}",
            field="experiment",
        )

    def _by_id(self, experiment_id: int) -> LiveExperiment:
        return next(e for e in self._entries.values() if e.id == experiment_id)


def tenant_secret(secret: bytes, tenant: str) -> bytes:
    """Give a tenant's own secret, so that no two share draws."""
    return keyed(secret, "tenant", "", tenant.encode())


def _key(entry: LiveExperiment) -> tuple[str, str]:
    return entry.tenant, entry.experiment.spec.name


def _restore(
    connection: Connection, experiment_id: int, experiment: Experiment
) -> tuple[Posterior, catalogue.Published | None]:
    posterior = experiment.prior()
    published = catalogue.latest_snapshot(connection, experiment_id)
    if published is not None:
        name = experiment.spec.name
        if encoding.digest(published.posterior) != published.digest:
            raise CorruptionError(f"snapshot {published.version} of {name!r} was changed")
        try:
            encoding.load(posterior, published.posterior)
        except BanditError as error:
            raise CorruptionError(f"snapshot {published.version} of {name!r}: {error}") from None
    return posterior, published


def _entry(
    row: AnyRow,
    experiment: Experiment,
    state: State,
    posterior: Posterior,
    published: catalogue.Published | None,
) -> LiveExperiment:
    """Publish what was read of an experiment: once, for that is most of a start's work."""
    version = 0 if published is None else published.version
    return LiveExperiment(
        id=row.id,
        tenant=row.tenant,
        experiment=experiment,
        state=state,
        revision=row.revision,
        created_at=row.created_at,
        snapshot=experiment.publish(posterior, version=version),
        published_at=None if published is None else published.published_at,
        spec_revision=row.spec_revision,
        spec_version=row.spec_version,
    )
