"""Deciding for many rows at once: requests as columns, read from a packed batch.

What is stored and answered is what ``server.deciding`` gives for the same requests one by one;
there is no object for a row before its log entry.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat

from bandit import rng
from bandit.decision import Reason
from bandit.kernels.compiling import Floats
from bandit.question import Questions
from server.deciding import hashed_rest
from server.live import LiveExperiment
from server.storage import DecisionRow


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
    time_zone
        Of all rows.
    keeps_propensities
        Whether all propensities are logged and answered.
    """

    request_ids: Sequence[str]
    hashes: Sequence[bytes]
    questions: Questions
    contexts: Sequence[bytes]
    time_zone: str
    keeps_propensities: bool

    def __len__(self) -> int:
        return len(self.request_ids)


def sheet(  # noqa: PLR0913
    live: LiveExperiment,
    request_ids: Sequence[str],
    customer_ids: Sequence[str],
    rows: Floats,
    *,
    time_zone: str,
    keeps_propensities: bool,
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
    told = hashed_rest(time_zone, None, keeps_propensities=keeps_propensities)
    hashes = [
        hashlib.blake2b(customer + context + told, digest_size=16).digest()
        for customer, context in zip(rng.split(customers), contexts, strict=True)
    ]
    return Sheet(
        request_ids=request_ids,
        hashes=hashes,
        questions=Questions(ids, customers, rows),
        contexts=contexts,
        time_zone=time_zone,
        keeps_propensities=keeps_propensities,
    )


def decide_sheet(
    live: LiveExperiment, asked: Sheet, now: int, refused: Reason | None
) -> list[DecisionRow]:
    """Decide for every row; give the rows under which the decisions are logged."""
    chosen = live.experiment.decide_columns(
        live.snapshot,
        asked.questions,
        propensities=asked.keeps_propensities,
        refused=refused,
    )
    actions = [None if action < 0 else action for action in chosen.actions.tolist()]
    p = chosen.propensities
    return list(
        map(
            DecisionRow,
            rng.split(asked.questions.ids),
            asked.request_ids,
            asked.hashes,
            rng.split(asked.questions.customers),
            asked.contexts,
            repeat(None),
            repeat(asked.time_zone),
            actions,
            chosen.propensity.tolist(),
            chosen.groups.tolist(),
            chosen.reasons.tolist(),
            repeat(live.snapshot.version),
            repeat(now),
            repeat(None) if p is None else (row.tobytes() for row in p.astype("<f8")),
        )
    )
