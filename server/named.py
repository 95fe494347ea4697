"""Named requests to decide, one or a batch, from messages to what the engine is asked."""

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bandit import rng, timing
from bandit.context import MAX_FIELDS, ContextSchema
from bandit.errors import BanditError, InvalidInputError
from bandit.experiment import Experiment
from bandit.question import Question
from server import convert
from server.deciding import Asking, hashed_rest
from server.live import LiveExperiment
from server.pb import bandit_pb2 as pb
from server.sheets import Sheet, Wish, sheet


class Asked(NamedTuple):
    """A request to decide, read and checked: who, in which context, and what else."""

    request_id: str
    customer_id: str
    row: list[float]
    wish: Wish


Request = pb.DecideRequest | pb.RankRequest
"""Asks for one customer; the fields that are read here are the same in both."""


def asked(request: Request, experiment: Experiment) -> Asked:
    """Read a request to decide.

    Raises
    ------
    InvalidInputError
        With the path of the first field that does not fit.
    """
    request_id = convert.text(request.request_id, "request_id")
    customer_id = convert.text(request.customer_id, "customer_id", convert.MAX_CUSTOMER_ID)
    row = context_row(request.context, experiment.spec.schema)
    rules = convert.exclusions(request.exclusions)
    if rules:
        experiment.spec.actions.check(rules)
    zone, keeps = request.time_zone, request.include_propensities
    if zone:
        timing.check_zone(zone)
    written = convert.exclusions_text(rules)
    told = hashed_rest(
        zone, written, keeps_propensities=keeps, shows_removed=request.include_removed
    )
    return Asked(request_id, customer_id, row, Wish(zone, rules, written, keeps, told))


def asking(request: Request, experiment: Experiment, tenant: str, now: int) -> Asking:
    """Read a request to decide, and name it, for it to be decided with others that wait.

    Raises
    ------
    InvalidInputError
        With the path of the first field that does not fit.
    """
    request_id, customer_id, row, wish = asked(request, experiment)
    customer = rng.customer_key(experiment.secret, tenant, customer_id)
    one = rng.decision_id(experiment.secret, experiment.spec.name, request_id, now // 1_000)
    packed = struct.pack(f"<{len(row)}d", *row)
    content = hashlib.blake2b(customer + packed + wish.told, digest_size=16)
    return Asking(
        Question(one, customer, row, wish.rules),
        packed,
        request_id,
        content.digest(),
        wish.exclusions,
        wish.time_zone,
        wish.keeps_propensities,
    )


def asked_together(requests: Sequence[pb.DecideRequest], live: LiveExperiment, now: int) -> Sheet:
    """Read the requests of a batch; what each becomes is what ``asking`` makes of it.

    Raises
    ------
    InvalidInputError
        With the path of the first field that does not fit.
    """
    read = []
    for i, request in enumerate(requests):
        try:
            read.append(asked(request, live.experiment))
        except BanditError as error:
            raise error.under(f"requests[{i}]") from None
    request_ids, customer_ids, rows, wishes = zip(*read, strict=True)
    table = np.array(rows, dtype=np.float64).reshape(len(read), -1)
    return sheet(live, request_ids, customer_ids, table, wishes, now)


def context_row(context: pb.Context, schema: ContextSchema) -> list[float]:
    """Read a context into a row of the schema; errors have the path ``context.values["x"]``."""
    if len(context.values) > MAX_FIELDS:
        raise InvalidInputError(
            f"{len(context.values)} values, at most {MAX_FIELDS} are allowed",
            field="context.values",
        )
    values: dict[str, object] = {}
    named = context.values
    for name in named:  # twice as fast as ``items``
        value = named[name]
        kind = value.WhichOneof("kind")
        values[name] = None if kind is None else getattr(value, kind)
    try:
        return schema.row(values)
    except InvalidInputError as error:
        raise error.under("context") from None
