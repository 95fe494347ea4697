"""The decisions of an exported log, all of them and bit for bit, to be made again."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bandit import rng
from bandit.actions import Exclusion
from bandit.decision import Group, Reason
from bandit.errors import BanditError, InvalidInputError
from bandit.kernels.compiling import Floats, Ints
from bandit.spec import ExperimentSpec
from sims.log.columns import codes, numbers, seconds, whole
from sims.log.rows import context_cells
from sims.log.sieve import Sieve
from sims.log.tables import Batch, Source

_UUID = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
_PLACE = re.compile(r"#(\d{1,2})$", re.ASCII)
MAX_PLACES = 20
"""Most that a ranking has."""

_KEY = r"^[0-9a-f]{32}$"
_GROUPS = tuple(group.name.lower() for group in Group)
_REASONS = tuple(reason.name.lower() for reason in Reason)
_OWN = (
    *("sequence", "decision_id", "request_id", "customer_key", "decided_at", "group", "reason"),
    *("snapshot_version", "action", "propensity", "outcome", "exclusions", "time_zone"),
    "request_hash",
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decided:
    """Decisions as columns, in log order; row ``i`` is row ``i + 1`` of the file.

    Attributes
    ----------
    sequence, decided_at, groups, reasons, versions : (n,)
        Times in microseconds since 1970.
    ids, customers : (n, 16)
    requests, zones : (n,)
    hashes : (n, 16)
        Of what was asked.
    actions : (n,)
        -1: nothing was sent.
    propensities, outcomes : (n,)
        Outcomes are NaN where there is none.
    exclusions, rules : (n,)
        As logged, and read.
    rows : (n, fields)
    """

    sequence: Ints
    decided_at: Ints
    groups: Ints
    reasons: Ints
    versions: Ints
    ids: rng.Ids
    customers: rng.Ids
    requests: list[str]
    actions: Ints
    propensities: Floats
    outcomes: Floats
    exclusions: list[str | None]
    rules: list[tuple[Exclusion, ...]]
    zones: list[str]
    hashes: rng.Ids
    rows: Floats

    def has_hash(self, i: int) -> bool:
        """Whether a row's customer, context and rules are those that were asked for.

        The hash also covers what the log does not have: two switches of the request, and for a
        place of a ranking how many were asked for.
        """
        asked = self.customers[i].tobytes() + self.rows[i].astype("<f8").tobytes()
        wanted = self.hashes[i].tobytes()
        return any(
            hashlib.blake2b(
                asked + f"{flags}{place}\0{self.zones[i]}\0{rules}".encode(), digest_size=16
            ).digest()
            == wanted
            for place, rules in self._places(i)
            for flags in range(4)
        )

    def _places(self, i: int) -> Iterator[tuple[str, str]]:
        """Give what a row may be, a decision alone first, and the rules that its request had.

        A place after the first has the actions above it as its last rules, one for each.
        """
        rules = self.exclusions[i] or ""
        yield "", rules
        yield from ((f" 1/{count}", rules) for count in range(1, MAX_PLACES + 1))
        place = int(found[1]) if (found := _PLACE.search(self.requests[i])) else 0
        if 2 <= place <= MAX_PLACES and len(self.rules[i]) >= place - 1:
            own = json.loads(rules)[: 1 - place]
            rules = json.dumps(own, ensure_ascii=False, separators=(",", ":")) if own else ""
            yield from ((f" {place}/{count}", rules) for count in range(place, MAX_PLACES + 1))


def read(source: Source, spec: ExperimentSpec) -> Decided:
    """Read an export with all its decisions.

    Raises
    ------
    InvalidInputError
        Naming the column that is missing, or row and column of a cell that no export holds.

    Notes
    -----
    In memory: about 150 bytes and 8 for every field of the context, a decision.
    """
    names = [*_OWN, *(f"context.{one.name}" for one in spec.context)]
    gone = [name for name in names if name not in source.types]
    if gone:
        raise InvalidInputError(
            f"has no column {gone[0]!r}: it is not what 'banditctl export' writes",
            field=str(source.path),
        )
    parts: dict[str, list[Any]] = {}
    last = -1
    for batch in source.batches(names):
        read_batch = _read_batch(batch, spec, str(source.path), last)
        for name, column in read_batch.items():
            parts.setdefault(name, []).append(column)
        last = int(read_batch["sequence"][-1])
    if not parts:
        raise InvalidInputError("holds no rows", field=str(source.path))
    return Decided(**{name: _joined(column) for name, column in parts.items()})


def _joined(parts: list[Any]) -> Any:  # noqa: ANN401  an array or a list
    if isinstance(parts[0], list):
        return [one for part in parts for one in part]
    return np.concatenate(parts)


def _read_batch(batch: Batch, spec: ExperimentSpec, path: str, last: int) -> dict[str, Any]:
    cells = batch.columns
    sieve = Sieve(batch, path, exclude=False)

    def number(name: str) -> Ints:
        found = whole(cells[name])
        sieve.refuse(found.missing | found.broken, name, "needs a whole number")
        return found.values.astype(np.int64)

    def coded(name: str, known: tuple[str, ...]) -> Ints:
        found = codes(cells[name], known)
        sieve.refuse(found < 0, name, f"must be one of {', '.join(known)}")
        return found + 1

    def read_bytes(name: str, pattern: str, noun: str) -> rng.Ids:
        fits = pc.match_substring_regex(cells[name].cast(pa.string()), pattern).fill_null(False)  # noqa: FBT003
        sieve.refuse(~fits.to_numpy(zero_copy_only=False), name, f"must be {noun}")
        data = bytes.fromhex("".join(cells[name].to_pylist()).replace("-", ""))
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, 16)

    sequence = number("sequence")
    before = np.concatenate([[last], sequence[:-1]])
    sieve.refuse(sequence <= before, "sequence", "must be more than in every row before")
    at = seconds(cells["decided_at"])
    sieve.refuse(at.missing | at.broken, "decided_at", "needs a time")
    sieve.refuse(_absent(cells["request_id"]), "request_id", "needs an id")
    action = whole(cells["action"])
    with np.errstate(invalid="ignore"):
        fits = (action.values >= 0) & (action.values < spec.actions.size) & ~action.broken
    sieve.refuse(
        ~(fits | action.missing), "action", f"must be in [0, {spec.actions.size - 1}], or nothing"
    )
    p = numbers(cells["propensity"])
    sieve.refuse(p.missing | p.broken, "propensity", "needs a number")
    return {
        "sequence": sequence,
        "decided_at": np.rint(at.values * 1e6).astype(np.int64),
        "groups": coded("group", _GROUPS),
        "reasons": coded("reason", _REASONS),
        "versions": number("snapshot_version"),
        "ids": read_bytes("decision_id", _UUID, "a UUID"),
        "customers": read_bytes("customer_key", _KEY, "32 hexadecimal digits"),
        "requests": cells["request_id"].cast(pa.string()).to_pylist(),
        "actions": np.where(fits, np.nan_to_num(action.values), -1).astype(np.int64),
        "propensities": p.values,
        "outcomes": numbers(cells["outcome"]).values,
        "exclusions": cells["exclusions"].cast(pa.string()).to_pylist(),
        "rules": _rules(cells["exclusions"], spec, sieve),
        "zones": [zone or "" for zone in cells["time_zone"].cast(pa.string()).to_pylist()],
        "hashes": read_bytes("request_hash", _KEY, "32 hexadecimal digits"),
        "rows": context_cells(batch, spec.context, sieve),
    }


def _absent(column: Any) -> Any:  # noqa: ANN401  pyarrow has no types
    return column.is_null().to_numpy(zero_copy_only=False)


def _rules(column: Any, spec: ExperimentSpec, sieve: Sieve) -> list[tuple[Exclusion, ...]]:  # noqa: ANN401
    """Read rules; equal texts give one and the same tuple."""
    known: dict[str | None, tuple[Exclusion, ...]] = {None: ()}
    found: list[tuple[Exclusion, ...]] = []
    for i, text in enumerate(column.cast(pa.string()).to_pylist()):
        if text not in known:
            try:
                rules = tuple(Exclusion(**rule) for rule in json.loads(text))
                spec.actions.check(rules)
            except (ValueError, TypeError, RecursionError, BanditError):
                bad = np.arange(len(column)) == i
                sieve.refuse(bad, "exclusions", "must be rules of this experiment as JSON")
                rules = ()
            known[text] = rules
        found.append(known[text])
    return found


def shown_id(one: rng.Ids) -> str:
    """Show a decision's id."""
    return str(UUID(bytes=one.tobytes()))
