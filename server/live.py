"""What decisions read: every experiment, its state and its published belief, in memory.

Entries are immutable and replaced whole, so a reader needs no lock and sees one moment.
"""

import threading
from dataclasses import dataclass, replace

from sqlalchemy.engine import Connection

from bandit import encoding, spec_file
from bandit.errors import BanditError, CorruptionError, NotFoundError
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
    """

    id: int
    tenant: str
    experiment: Experiment
    state: State
    revision: int
    created_at: int
    snapshot: Snapshot
    published_at: int | None = None

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
    """

    def __init__(self, secret: bytes, clock: Clock = system_clock) -> None:
        self._secret = secret
        self._clock = clock
        self._current: dict[int, int] = {}
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
            self.add(row)
            posterior, published = self.restore(connection, self.find(row.tenant, row.name))
            if published is not None:
                snapshot = self.find(row.tenant, row.name).experiment.publish(
                    posterior, version=published.version
                )
                self.publish(row.id, snapshot, published.published_at)

    def restore(
        self, connection: Connection, live: LiveExperiment
    ) -> tuple[Posterior, catalogue.Published | None]:
        """Read an experiment's newest posterior, or give the prior if there is none."""
        posterior = live.experiment.prior()
        published = catalogue.latest_snapshot(connection, live.id)
        if published is not None:
            name = live.experiment.spec.name
            if encoding.digest(published.posterior) != published.digest:
                raise CorruptionError(f"snapshot {published.version} of {name!r} was changed")
            try:
                encoding.load(posterior, published.posterior)
            except BanditError as error:
                raise CorruptionError(
                    f"snapshot {published.version} of {name!r}: {error}"
                ) from None
        return posterior, published

    def add(self, row: AnyRow) -> LiveExperiment:
        """Take in a stored experiment, with the prior as its belief, unless it is here."""
        known = self._entries.get((row.tenant, row.name))
        if known is not None:
            return known
        try:
            experiment, state = self._build(row.spec, row.tenant), State(row.state)
        except (ValueError, TypeError, AttributeError, BanditError) as error:
            raise CorruptionError(f"experiment {row.name!r}: {error}") from None
        entry = LiveExperiment(
            id=row.id,
            tenant=row.tenant,
            experiment=experiment,
            state=state,
            revision=row.revision,
            created_at=row.created_at,
            snapshot=experiment.publish(experiment.prior(), version=0),
        )
        with self._lock:
            return self._entries.setdefault(_key(entry), entry)

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
        secret = keyed(self._secret, "tenant", "", tenant.encode())  # no two share draws
        return Experiment(spec_file.parse(written, "json"), secret=secret)

    def find(self, tenant: str, name: str, field: str = "experiment") -> LiveExperiment:
        """Give one experiment; ``field`` is the path that an error names.

        Raises
        ------
        NotFoundError
            If the tenant has none of this name.
        """
        entry = self._entries.get((tenant, name))
        if entry is None:
            raise NotFoundError(f"no experiment {name[:64]!r}", field=field)
        return entry

    def entries(self) -> list[LiveExperiment]:
        """Give all experiments, in order of tenant and name."""
        return [entry for _, entry in sorted(self._entries.items())]

    def set_state(self, row: AnyRow) -> LiveExperiment:
        """Take over a changed state, unless a later change was; give what this change made."""
        with self._lock:
            entry = self._by_id(row.id)
            changed = replace(entry, state=State(row.state), revision=row.revision)
            if row.revision > entry.revision:
                self._entries[_key(entry)] = changed
        return changed

    def publish(self, experiment_id: int, snapshot: Snapshot, at: int) -> None:
        """Let decisions read another belief."""
        with self._lock:
            entry = self._by_id(experiment_id)
            self._entries[_key(entry)] = replace(entry, snapshot=snapshot, published_at=at)

    def confirm(self, experiment_id: int, at: int) -> None:
        """Note that every outcome closed before ``at`` is in the published belief."""
        self._current[experiment_id] = at

    def confirmed_at(self, experiment_id: int) -> int | None:
        """Give the last moment for which ``confirm`` said so, or None."""
        return self._current.get(experiment_id)

    def current_at(self, experiment_id: int) -> int:
        """Give the last moment for which ``confirm`` said so; the first look if none."""
        return self._current.setdefault(experiment_id, self._clock())

    def _by_id(self, experiment_id: int) -> LiveExperiment:
        return next(e for e in self._entries.values() if e.id == experiment_id)


def _key(entry: LiveExperiment) -> tuple[str, str]:
    return entry.tenant, entry.experiment.spec.name
