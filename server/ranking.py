"""Ordered alternatives for one customer: every place is an ordinary decision of the log.

The first place is the decision that ``Decide`` would make. Every further place is decided with
the actions above it excluded, under a request id of its own, so what reads the log (learning,
rewards, replay, evaluation, audit, export) knows nothing of rankings. All places are one job of
the writer: they are stored in one transaction, and answered together ever after. See
``docs/decisions/0015-rankings.md``.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy.engine import Connection

from bandit import rng
from bandit.actions import MAX_EXCLUSIONS, Exclusion
from bandit.decision import Reason
from bandit.errors import InvalidInputError, StateError
from server import convert, storage
from server.deciding import Asking, Plan, decide, hashed_rest
from server.live import LiveExperiment
from server.named import asking
from server.pb import bandit_pb2 as pb
from server.storage import DecisionRow, Key, Logged
from server.writer import AppendDecisions, Call, Job

MAX_PLACES = 20
MAX_RANK_ID = convert.MAX_ID - len(f"#{MAX_PLACES}")
RANKED_ABOVE = "ranked above"
"""Why an action is removed that has a place further up."""


class Ranked(NamedTuple):
    """A request to rank, read and checked.

    Attributes
    ----------
    first
        What the first place asks: the same as ``Decide`` is asked, but for the hash.
    keys
        Request id and hash of every place that there may be.
    """

    first: Asking
    keys: Sequence[Key]


def job(
    request: pb.RankRequest,
    live: LiveExperiment,
    now: int,
    refused: Callable[[LiveExperiment], Reason | None],
) -> Job[list[Logged]]:
    """Read a request to rank and decide it; give what is left for the writer.

    Parameters
    ----------
    now
        Microseconds since 1970.
    refused
        Tells why nobody is decided for now; raises StateError where nothing is decided any
        more, and then only the places of an earlier request are given again.

    Raises
    ------
    InvalidInputError
        With the path of the first field that does not fit.
    StateError
        If places that nobody is shown would be learned from.
    """
    asked = read(request, live, now)
    try:
        plan = Plan(live, (), now, refused(live))
    except StateError as error:
        return _repeat(live, asked.keys, error)
    append = AppendDecisions(plan, places(asked, plan), asked.keys)
    append.rows = len(append.decisions)
    return append


def read(request: pb.RankRequest, live: LiveExperiment, now: int) -> Ranked:
    """Read a request to rank.

    Raises
    ------
    InvalidInputError
        With the path of the first field that does not fit.
    StateError
        If places that nobody is shown would be learned from.
    """
    count = request.count
    if not 1 <= count <= MAX_PLACES:
        raise InvalidInputError(f"must be 1 to {MAX_PLACES}, got {count}", field="count")
    request_id = convert.text(request.request_id, "request_id", MAX_RANK_ID)
    rules, most = len(request.exclusions), MAX_EXCLUSIONS + 1 - count
    if rules > most:
        raise InvalidInputError(
            f"{rules} rules, at most {most} are allowed beside {count} places", field="exclusions"
        )
    first = asking(request, live.experiment, live.tenant, now)
    if count > 1 and not live.experiment.spec.outcome.is_confirmed:
        raise StateError(
            f"experiment {live.experiment.spec.name!r} takes every decision as shown, so places "
            'that nobody is shown would be learned as failures; declare outcome.exposure = "'
            'confirmed" and confirm what is shown, or ask for one place',
            field="count",
        )
    keys = []
    for place in range(1, count + 1):
        told = hashed_rest(
            first.time_zone,
            first.exclusions,
            keeps_propensities=first.keeps_propensities,
            shows_removed=request.include_removed,
            place=f" {place}/{count}",
        )
        content = hashlib.blake2b(first.question.customer + first.context + told, digest_size=16)
        keys.append((request_id if place == 1 else f"{request_id}#{place}", content.digest()))
    return Ranked(first._replace(request_hash=keys[0][1]), keys)


def places(asked: Ranked, plan: Plan) -> list[DecisionRow]:
    """Decide place by place; give the rows under which they are logged.

    Notes
    -----
    A ranking ends where no action is left, and after a decision that is declared, not chosen:
    who gets the fallback or the baseline gets that alone.
    """
    rows: list[DecisionRow] = []
    above: tuple[Exclusion, ...] = ()
    for key in asked.keys:
        asking_now = _below(asked.first, key, above, plan) if above else asked.first
        [[row]] = decide([plan._replace(asked=(asking_now,))])
        is_chosen = row.reason in storage.LEARNED_REASONS
        if is_chosen or not rows:
            rows.append(row)
        if not is_chosen or row.action is None:
            break
        above += (_exclusion(plan.live, row.action),)
    return rows


def _below(first: Asking, key: Key, above: tuple[Exclusion, ...], plan: Plan) -> Asking:
    """Give what a further place asks: the same, without the actions above."""
    experiment = plan.live.experiment
    request_id, request_hash = key
    one = rng.decision_id(experiment.secret, experiment.spec.name, request_id, plan.now // 1_000)
    rules = first.question.exclusions + above
    return first._replace(
        question=first.question._replace(decision_id=one, exclusions=rules),
        request_id=request_id,
        request_hash=request_hash,
        exclusions=convert.exclusions_text(rules),
    )


def _exclusion(live: LiveExperiment, action: int) -> Exclusion:
    variant, channel, slot = live.experiment.spec.actions.levels(action)
    return Exclusion(
        variant=variant.name, channel=channel.name, slot=slot.name, reason=RANKED_ABOVE
    )


def _repeat(live: LiveExperiment, keys: Sequence[Key], refusal: StateError) -> Job[list[Logged]]:
    def repeat(connection: Connection) -> list[Logged]:
        found = storage.find_ranking(connection, live.id, keys)
        if not found:
            raise refusal
        return found

    return Call(repeat)


def answer(request: pb.RankRequest, live: LiveExperiment, logged: list[Logged]) -> pb.RankResponse:
    """Give the places as a message."""
    return pb.RankResponse(
        decisions=[
            convert.decision(live, one, include_removed=request.include_removed) for one in logged
        ]
    )
