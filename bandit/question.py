"""What an experiment is asked, one by one or as columns, and what it answers in columns."""

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from bandit import rng
from bandit.actions import Exclusion
from bandit.kernels.compiling import Floats, Ints


class Question(NamedTuple):
    """One decision to make.

    Attributes
    ----------
    decision_id
        From ``rng.decision_id``; its random part names the draw.
    customer
        Pseudonym of the customer; decides the group.
    row
        Context in schema order, from ``ContextSchema.row``.
    exclusions
        Rules of this request, beside the experiment's own.
    """

    decision_id: UUID
    customer: bytes
    row: Sequence[float]
    exclusions: tuple[Exclusion, ...] = ()


class Questions(NamedTuple):
    """Many decisions to make, as columns.

    Attributes
    ----------
    ids : (n, 16)
        From ``rng.decision_ids``.
    customers : (n, 16)
        From ``rng.customer_keys``.
    rows : (n, fields)
        Contexts in schema order.
    exclusions : (n,)
        Rules of every request beside the experiment's own; empty: none has any.
    """

    ids: rng.Ids
    customers: rng.Ids
    rows: Floats
    exclusions: Sequence[tuple[Exclusion, ...]] = ()


class Chosen(NamedTuple):
    """Many decisions, as columns.

    Attributes
    ----------
    actions : (n,)
        -1: send nothing.
    propensity : (n,)
        Of the action.
    groups, reasons : (n,)
        Numbers of ``Group`` and ``Reason``.
    propensities : (n, k) or None
        Of every action, if asked for.
    """

    actions: Ints
    propensity: Floats
    groups: Ints
    reasons: Ints
    propensities: Floats | None
