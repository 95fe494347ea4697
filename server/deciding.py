"""Deciding what was asked, for everybody who waits at once.

Requests are read one by one, as they come; the engine then decides for a whole group, which
costs little more than for one, and gives each the decision it would have had alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

from bandit.decision import Decision, Reason
from bandit.question import Question
from server.live import LiveExperiment
from server.storage import DecisionRow


class Asking(NamedTuple):
    """A request to decide, read and checked.

    Attributes
    ----------
    question
        What the engine is asked.
    context
        The question's row as it is logged.
    request_id, request_hash
        Idempotency key, and what it stands for.
    exclusions, time_zone
        As they are logged.
    keeps_propensities
        Whether all propensities are logged and answered.
    """

    question: Question
    context: bytes
    request_id: str
    request_hash: bytes
    exclusions: str | None
    time_zone: str
    keeps_propensities: bool


class Plan(NamedTuple):
    """Requests of one caller to one experiment, at one moment.

    Attributes
    ----------
    live
        The experiment as it was when the request came: its snapshot decides.
    refused
        Why nobody is decided for, if so.
    """

    live: LiveExperiment
    asked: Sequence[Asking]
    now: int
    refused: Reason | None


def hashed_rest(
    time_zone: str,
    exclusions: str | None,
    *,
    keeps_propensities: bool,
    shows_removed: bool = False,
    place: str = "",
) -> bytes:
    """Give what a request hash covers beside customer and context.

    ``place`` is that of a ranking, such as " 2/5"; a decision that stands alone has none.
    """
    flags = 2 * keeps_propensities + shows_removed
    return f"{flags}{place}\0{time_zone}\0{exclusions or ''}".encode()


def decide(plans: Sequence[Plan]) -> list[list[DecisionRow]]:
    """Decide for every plan; those that share experiment, snapshot and state go together."""
    groups: dict[tuple[int, Reason | None], list[int]] = {}
    for i, plan in enumerate(plans):
        groups.setdefault((id(plan.live.snapshot), plan.refused), []).append(i)
    rows: list[list[DecisionRow]] = [[] for _ in plans]
    for members in groups.values():
        first = plans[members[0]]
        questions = [asking.question for i in members for asking in plans[i].asked]
        decisions = iter(
            first.live.experiment.decide_batch(
                first.live.snapshot, questions, refused=first.refused
            )
        )
        for i in members:
            now = plans[i].now
            rows[i] = [_row(asking, next(decisions), now) for asking in plans[i].asked]
    return rows


def _row(asked: Asking, decision: Decision, now: int) -> DecisionRow:
    """Give the row under which a decision is logged."""
    kept = decision.propensities if asked.keeps_propensities else None
    return DecisionRow(
        decision.decision_id.bytes,
        asked.request_id,
        asked.request_hash,
        asked.question.customer,
        asked.context,
        asked.exclusions,
        asked.time_zone,
        decision.action,
        decision.propensity,
        int(decision.group),
        int(decision.reason),
        decision.snapshot_version,
        now,
        None if kept is None else kept.astype("<f8").tobytes(),
    )
