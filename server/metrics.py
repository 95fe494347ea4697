"""Metrics as Prometheus reads them: counters and the state of the server, made when asked.

Every name, label and meaning stands in ``docs/reference/metrics.md``. Labels are names of
experiments, tenants, groups, reasons, rewards, methods and codes: all bounded. Nothing of a
customer or a request is ever a label.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from bandit.decision import Group, Reason
from server.catalogue import State
from server.clock import Clock
from server.counters import Counters, Distribution, ExperimentTally
from server.health import Health
from server.learner import Learner
from server.live import Live, LiveExperiment
from server.sample_ratio import SampleRatios
from server.writer import Writer

MOST_EXPERIMENTS = 2_000
"""Experiments with series of their own, oldest first; the others are counted as ``_other``."""

_OF = ["tenant", "experiment"]
_OTHER = ("", "_other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the numbers come from."""

    counters: Counters
    live: Live
    writer: Writer
    learner: Learner
    health: Health
    ratios: SampleRatios
    clock: Clock


def registry(sources: Sources) -> CollectorRegistry:
    """Give everything that ``/metrics`` shows of one server, and of its process."""
    made = CollectorRegistry(auto_describe=False)
    made.register(_Server(sources))
    made.register(_Experiments(sources))
    ProcessCollector(registry=made)
    PlatformCollector(registry=made)
    GCCollector(registry=made)
    return made


class _Server(Collector):
    """What is true of the whole process."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Give all families."""
        writer, counters = self._sources.writer, self._sources.counters
        health = self._sources.health.state()
        yield _gauge(
            "bandit_ready", "Whether requests are welcome (1) or not (0).", health.is_ready
        )
        yield _gauge("bandit_alive", "Whether every thread runs that must.", health.is_alive)
        yield _gauge("bandit_queue_jobs", "Jobs that wait for the writer.", writer.waiting)
        yield CounterMetricFamily(
            "bandit_commit_failures", "Transactions that failed.", value=writer.failures
        )
        yield _histogram("bandit_commit_seconds", "Duration of a commit.", counters.commit_seconds)
        yield _histogram("bandit_commit_rows", "Rows of a commit.", counters.commit_rows)
        yield _histogram(
            "bandit_reward_lag_seconds",
            "From when a rewarded event happened until it was reported.",
            counters.reward_lag,
        )
        yield _histogram(
            "bandit_reward_delay_seconds",
            "From the decision until a reward event was reported.",
            counters.reward_delay,
        )
        yield from self._calls()

    def _calls(self) -> Iterator[Metric]:
        seconds = HistogramMetricFamily(
            "bandit_request_seconds",
            "Duration of a call by method and status code.",
            labels=["method", "code"],
        )
        shed = CounterMetricFamily(
            "bandit_requests_shed", "Calls turned away: the server was full.", labels=["method"]
        )
        for method in list(self._sources.counters.methods.values()):
            shed.add_metric([method.name], method.shed)
            for code, found in list(method.by_code.items()):
                _add(seconds, [method.name, code], found)
        yield seconds
        yield shed


class _Experiments(Collector):
    """What is true of each experiment."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Give all families."""
        found = sorted(self._sources.live.entries(), key=lambda live: live.id)
        shown = {
            live.id: (live.tenant, live.experiment.spec.name) for live in found[:MOST_EXPERIMENTS]
        }
        yield _gauge("bandit_experiments", "Experiments that this process knows.", len(found))
        yield from self._counted(shown)
        yield from self._states(found[:MOST_EXPERIMENTS])
        yield from self._ratios(found[:MOST_EXPERIMENTS])

    def _counted(self, shown: dict[int, tuple[str, str]]) -> Iterator[Metric]:
        decisions = CounterMetricFamily(
            "bandit_decisions",
            "New decisions by group and reason.",
            labels=[*_OF, "group", "reason"],
        )
        rewards = CounterMetricFamily(
            "bandit_rewards",
            "Reward events by kind and by what became of them.",
            labels=[*_OF, "reward", "disposition"],
        )
        singles = {
            "repeated": CounterMetricFamily(
                "bandit_decisions_repeated",
                "Requests that got the answer they had been given before.",
                labels=_OF,
            ),
            "unjoined": CounterMetricFamily(
                "bandit_rewards_unjoined",
                "Reward events for a decision that is unknown.",
                labels=_OF,
            ),
            "floor_hits": CounterMetricFamily(
                "bandit_propensity_floor_hits",
                "Decisions of the policy whose propensity was the floor.",
                labels=_OF,
            ),
        }
        for labels, tally in self._tallies(shown):
            for (group, reason), n in list(tally.decisions.items()):
                words = [Group(group).name.lower(), Reason(reason).name.lower()]
                decisions.add_metric([*labels, *words], n)
            for (name, what), n in list(tally.rewards.items()):
                rewards.add_metric([*labels, name, what], n)
            for name, family in singles.items():
                family.add_metric(labels, getattr(tally, name))
        yield from (decisions, rewards, *singles.values())

    def _tallies(
        self, shown: dict[int, tuple[str, str]]
    ) -> Iterator[tuple[tuple[str, str], ExperimentTally]]:
        """Give every tally, and one of all that have no series of their own."""
        rest = ExperimentTally()
        tallies = dict(self._sources.counters.experiments)
        for experiment_id, labels in shown.items():
            yield labels, tallies.pop(experiment_id, ExperimentTally())
        for tally in tallies.values():
            rest.merge(tally)
        if tallies:
            yield _OTHER, rest

    def _states(self, found: Iterable[LiveExperiment]) -> Iterator[Metric]:
        now = self._sources.clock()
        state = GaugeMetricFamily(
            "bandit_experiment_state", "1 for the state it is in.", labels=[*_OF, "state"]
        )
        version = GaugeMetricFamily(
            "bandit_snapshot_version", "The belief that decides.", labels=_OF
        )
        age = GaugeMetricFamily(
            "bandit_snapshot_age_seconds", "Since the belief was published.", labels=_OF
        )
        learned = GaugeMetricFamily(
            "bandit_snapshot_outcomes", "Outcomes in the belief that decides.", labels=_OF
        )
        waiting = GaugeMetricFamily(
            "bandit_learner_lag_outcomes",
            "Outcomes folded and not yet published, where this process learns.",
            labels=_OF,
        )
        behind = GaugeMetricFamily(
            "bandit_learner_lag_seconds",
            "Since every closed outcome was in the belief that decides.",
            labels=_OF,
        )
        for live in found:
            labels = (live.tenant, live.experiment.spec.name)
            for one in State:
                state.add_metric([*labels, one.name.lower()], float(one is live.state))
            version.add_metric(labels, live.snapshot.version)
            learned.add_metric(labels, live.snapshot.count)
            if live.published_at is not None:
                age.add_metric(labels, max(now - live.published_at, 0) / 1e6)
            folded = self._sources.learner.waiting(live.id)
            if folded is not None:
                waiting.add_metric(labels, folded)
            confirmed = self._sources.live.confirmed_at(live.id)
            if confirmed is not None and live.state is not State.DRAFT:
                behind.add_metric(labels, max(now - confirmed, 0) / 1e6)
        yield from (state, version, learned, age, waiting, behind)

    def _ratios(self, found: Iterable[LiveExperiment]) -> Iterator[Metric]:
        labels = [*_OF, "snapshot"]
        p_value = GaugeMetricFamily(
            "bandit_sample_ratio_p_value",
            "Chance of group sizes at least this far from the declared ones.",
            labels=labels,
        )
        version = GaugeMetricFamily(
            "bandit_sample_ratio_snapshot_version", "The snapshot that was judged.", labels=labels
        )
        customers = GaugeMetricFamily(
            "bandit_sample_ratio_customers", "Customers that were judged.", labels=labels
        )
        for live in found:
            for one in self._sources.ratios.of(live.id):
                told = [live.tenant, live.experiment.spec.name, one.snapshot]
                p_value.add_metric(told, one.p_value)
                version.add_metric(told, one.version)
                customers.add_metric(told, one.customers)
        yield from (p_value, version, customers)


def _gauge(name: str, told: str, value: float) -> Metric:
    return GaugeMetricFamily(name, told, value=float(value))


def _histogram(name: str, told: str, found: Distribution) -> Metric:
    family = HistogramMetricFamily(name, told)
    _add(family, [], found)
    return family


def _add(family: HistogramMetricFamily, labels: list[str], found: Distribution) -> None:
    total, counts = 0, list(found.counts)
    buckets = []
    for bound, n in zip((*found.bounds, float("inf")), counts, strict=True):
        total += n
        buckets.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(total)))
    family.add_metric(labels, buckets, found.total)
