"""Deciding for many rows at once: requests as columns, read from a batch, named or packed.

What is stored and answered is what ``server.deciding`` gives for the same requests one by one;
there is no object for a row before its log entry.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

from bandit import rng
from bandit.actions import Exclusion
from bandit.decision import Reason
from bandit.kernels.compiling import Floats
from bandit.question import Questions
from server.live import LiveExperiment
from server.storage import DecisionRow


class Wish(NamedTuple):
    """What a request asks for beside customer and context; many rows share one.

    Attributes
    ----------
    time_zone
        As it is logged.
    rules
        Exclusions of the request.
    exclusions
        The rules as they are logged.
    keeps_propensities
        Whether all propensities are logged and answered.
    told
        What the request hash covers of all this: ``deciding.hashed_rest``.
    """

    time_zone: str
    rules: tuple[Exclusion, ...]
    exclusions: str | None
    keeps_propensities: bool
    told: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sheet:
    """Requests to decide, as columns, read and checked.

    Attributes
    ----------
    request_ids : (n,)
        Idempotency keys.
    hashes : (n,)
        What each key stands for: the hash that ``Decide`` gives the same request.
    questions
        What the engine is asked.
    contexts : (n,)
        Rows as they are logged.
    wishes : (n,)
        What else was asked for.
    """

    request_ids: Sequence[str]
    hashes: Sequence[bytes]
    questions: Questions
    contexts: Sequence[bytes]
    wishes: Sequence[Wish]

    def __len__(self) -> int:
        return len(self.request_ids)


def sheet(  # noqa: PLR0913
    live: LiveExperiment,
    request_ids: Sequence[str],
    customer_ids: Sequence[str],
    rows: Floats,
    wishes: Sequence[Wish],
    now: int,
) -> Sheet:
    """Name what was asked: pseudonyms, decision ids and request hashes.

    Parameters
    ----------
    rows : (n, fields)
        Contexts that fit the schema.
    now
        Microseconds since 1970.
    """
    secret, name = live.experiment.secret, live.experiment.spec.name
    customers = rng.customer_keys(secret, live.tenant, customer_ids)
    ids = rng.decision_ids(secret, name, request_ids, now // 1_000)
    data, width = rows.astype("<f8").tobytes(), 8 * rows.shape[1]
    contexts = [data[at : at + width] for at in range(0, len(request_ids) * width, width or 1)]
    contexts = contexts or [b""] * len(request_ids)
    hashes = [
        hashlib.blake2b(customer + context + wish.told, digest_size=16).digest()
        for customer, context, wish in zip(rng.split(customers), contexts, wishes, strict=True)
    ]
    rules = [wish.rules for wish in wishes] if any(wish.rules for wish in wishes) else ()
    return Sheet(
        request_ids=request_ids,
        hashes=hashes,
        questions=Questions(ids, customers, rows, rules),
        contexts=contexts,
        wishes=wishes,
    )


def decide_sheet(
    live: LiveExperiment, asked: Sheet, now: int, refused: Reason | None
) -> list[DecisionRow]:
    """Decide for every row; give the rows under which the decisions are logged."""
    keeps = [wish.keeps_propensities for wish in asked.wishes]
    chosen = live.experiment.decide_columns(
        live.snapshot, asked.questions, propensities=any(keeps), refused=refused
    )
    actions = [None if action < 0 else action for action in chosen.actions.tolist()]
    kept: Iterable[bytes | None] = repeat(None)
    if chosen.propensities is not None:
        every = chosen.propensities.astype("<f8")
        kept = [row.tobytes() if keep else None for row, keep in zip(every, keeps, strict=True)]
    return list(
        map(
            DecisionRow,
            rng.split(asked.questions.ids),
            asked.request_ids,
            asked.hashes,
            rng.split(asked.questions.customers),
            asked.contexts,
            [wish.exclusions for wish in asked.wishes],
            [wish.time_zone for wish in asked.wishes],
            actions,
            chosen.propensity.tolist(),
            chosen.groups.tolist(),
            chosen.reasons.tolist(),
            repeat(live.snapshot.version),
            repeat(now),
            kept,
        )
    )
