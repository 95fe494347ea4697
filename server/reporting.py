"""What happened so far: traffic, reward and lift by group, read from the log."""

from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, and_, case, exists, func, select
from sqlalchemy.engine import Connection

from bandit import measurement
from bandit.decision import Group, Reason
from bandit.measurement import Lift, Sample
from server import revisions, storage
from server.live import LiveExperiment
from server.schema import (
    decisions,
    experiments,
    exposures,
    open_windows,
    outcomes,
    reward_events,
)

MOST_ACTIONS = 100


class GroupLine(NamedTuple):
    """Traffic and outcomes of a group."""

    decisions: int
    contacts: int
    sample: Sample


class ActionLine(NamedTuple):
    """Traffic and outcomes of an action in the bandit and random groups."""

    action: int
    bandit: int
    random: int
    n: int
    total: float


class Report(NamedTuple):
    """Everything ``GetReport`` answers."""

    groups: dict[Group, GroupLine]
    lifts: dict[Group, Lift]
    actions: list[ActionLine]
    reward_events: int
    late_events: int
    open_decisions: int
    sample_ratio_p_value: float
    corrections: int
    exposures: int


_joined = decisions.outerjoin(
    outcomes,
    storage.newest_of(
        and_(
            outcomes.c.experiment_id == decisions.c.experiment_id,
            outcomes.c.decision_seq == decisions.c.seq,
        )
    ),
)
_chosen = decisions.c.reason.not_in([Reason.PAUSED, Reason.STALE_SNAPSHOT])
_value = case((_chosen, outcomes.c.value))
"""Outcomes while the experiment chose. Where rules left a group nothing, its outcome counts as it
is (intention to treat): leaving it out would select customers by what is eligible for them."""


def log_length(connection: Connection, experiment_id: int) -> int:
    """Give the number of entries in an experiment's log."""
    next_seq = connection.execute(
        select(experiments.c.next_seq).where(experiments.c.id == experiment_id)
    ).scalar_one()
    return int(next_seq) - 1


def report(connection: Connection, live: LiveExperiment) -> Report:
    """Read an experiment's report.

    Notes
    -----
    O(log entries): one pass over decisions joined with outcomes, and one over events.
    """
    groups, customers = _groups(connection, live)
    bandit = groups.get(Group.BANDIT)
    lifts: dict[Group, Lift] = {}
    if bandit is not None and bandit.sample.n > 1:
        lifts = {
            group: measurement.lift(bandit.sample, line.sample)
            for group, line in groups.items()
            if group is not Group.BANDIT and line.sample.n > 1
        }
    recorded = connection.execute(
        select(
            func.count().label("n"),
            func.coalesce(func.sum(case((reward_events.c.late, 1), else_=0)), 0).label("late"),
        ).where(reward_events.c.experiment_id == live.id)
    ).one()
    return Report(
        groups=groups,
        lifts=lifts,
        actions=_actions(connection, live.id),
        reward_events=recorded.n,
        late_events=int(recorded.late),
        open_decisions=_open(connection, live),
        sample_ratio_p_value=measurement.sample_ratio_p_value(
            customers, live.experiment.spec.groups
        ),
        corrections=_count(
            connection, outcomes.c.experiment_id == live.id, outcomes.c.replaces > 0
        ),
        exposures=_count(connection, exposures.c.experiment_id == live.id),
    )


def _groups(
    connection: Connection, live: LiveExperiment
) -> tuple[dict[Group, GroupLine], dict[Group, int]]:
    """Read the groups, and the customers of each since their shares are what they are."""
    since = revisions.groups_since(connection, live)
    mine = case((decisions.c.snapshot_version >= since, decisions.c.customer))
    found = connection.execute(
        select(
            decisions.c.traffic_group,
            func.count().label("decisions"),
            func.count(decisions.c.action).label("contacts"),
            func.count(mine.distinct()).label("customers"),
            func.count(_value).label("n"),
            func.coalesce(func.sum(_value), 0.0).label("total"),
        )
        .select_from(_joined)
        .where(decisions.c.experiment_id == live.id)
        .group_by(decisions.c.traffic_group)
    )
    rows = {Group(row.traffic_group): row for row in found}
    lines = {}
    for group, share in live.experiment.spec.groups.shares.items():
        row = rows.get(group)
        if row is not None:
            sample = _sample(connection, live.id, group, row.n, float(row.total))
            lines[group] = GroupLine(row.decisions, row.contacts, sample)
        elif share > 0:
            lines[group] = GroupLine(0, 0, Sample.of([]))
    return lines, {group: row.customers for group, row in rows.items()}


def _sample(
    connection: Connection, experiment_id: int, group: Group, n: int, total: float
) -> Sample:
    """Read how customers differ from the group's mean; a second pass, so that nothing cancels."""
    mean = total / n if n else 0.0
    own = (
        select(func.sum(_value - mean).label("off"))
        .select_from(_joined)
        .where(
            decisions.c.experiment_id == experiment_id,
            decisions.c.traffic_group == group,
            _value.is_not(None),
        )
        .group_by(decisions.c.customer)
        .subquery()
    )
    spread = func.coalesce(func.sum(own.c.off * own.c.off), 0.0)
    customers, deviation = connection.execute(select(func.count(own.c.off), spread)).one()
    return Sample(n, total, customers, float(deviation))


def _actions(connection: Connection, experiment_id: int) -> list[ActionLine]:
    def decided(group: Group) -> Any:  # noqa: ANN401  a column
        return func.sum(case((decisions.c.traffic_group == group, 1), else_=0))

    bandit = decided(Group.BANDIT).label("bandit")
    found = connection.execute(
        select(
            decisions.c.action,
            bandit,
            decided(Group.RANDOM).label("random"),
            func.count(outcomes.c.value).label("n"),
            func.coalesce(func.sum(outcomes.c.value), 0.0).label("total"),
        )
        .select_from(_joined)
        .where(
            decisions.c.experiment_id == experiment_id,
            decisions.c.action.is_not(None),
            decisions.c.reason.in_([Reason.POLICY, Reason.RANDOM_GROUP]),
        )
        .group_by(decisions.c.action)
        .order_by(bandit.desc(), decisions.c.action)
        .limit(MOST_ACTIONS)
    )
    return [
        ActionLine(row.action, int(row.bandit), int(row.random), row.n, float(row.total))
        for row in found
    ]


def _count(connection: Connection, *chosen: ColumnElement[bool]) -> int:
    return connection.execute(select(func.count()).where(*chosen)).scalar_one()


def _open(connection: Connection, live: LiveExperiment) -> int:
    passed = select(experiments.c.closed_seq).where(experiments.c.id == live.id)
    waiting = [
        decisions.c.experiment_id == live.id,
        decisions.c.seq > passed.scalar_subquery(),
        outcomes.c.seq.is_(None),
    ]
    running = 0
    if live.experiment.spec.outcome.is_confirmed:  # shown ones are in the list of windows
        running = _count(connection, open_windows.c.experiment_id == live.id)
        shown = exists().where(
            exposures.c.experiment_id == decisions.c.experiment_id,
            exposures.c.decision_seq == decisions.c.seq,
            exposures.c.late.is_(False),
        )
        waiting.append(~shown)
    found = connection.execute(select(func.count()).select_from(_joined).where(*waiting))
    return running + found.scalar_one()


def decisions_logged(connection: Connection, experiment_id: int) -> int:
    """Give the number of decisions in an experiment's log."""
    return connection.execute(
        select(func.count()).where(decisions.c.experiment_id == experiment_id)
    ).scalar_one()
