"""Whole campaigns: many decisions and rewards in packed batches, a few in flight at a time.

Request and event ids follow from a campaign's name and each row, so a row that is sent again,
by this process or a later one, gets its first answer and never a second decision.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec
from server import convert, tables
from server.client import BanditClient
from server.pb import bandit_pb2 as pb

CHUNK = 2_000
MAX_CHUNK = 10_000
FLIGHT, MAX_FLIGHT = 2, 16
MAX_CAMPAIGN = 60
MAX_KEY = 64
_MOST_BYTES = 2 * 2**20

A = TypeVar("A")
R = TypeVar("R")
Rows = Iterable[Mapping[str, object]]
"""Mappings by column name, or an Arrow table, which is read as it is."""

Step = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How much is asked for at a time.

    Parameters
    ----------
    chunk
        Rows of one request, 1 to 10000; a chunk is decided whole or not at all.
    flight
        Requests under way at a time, 1 to 16.
    progress
        Whether to show a bar.
    """

    chunk: int = CHUNK
    flight: int = FLIGHT
    progress: bool = False

    def __post_init__(self) -> None:
        for name, most in (("chunk", MAX_CHUNK), ("flight", MAX_FLIGHT)):
            if not 0 < getattr(self, name) <= most:
                raise InvalidInputError(f"needs 1 to {most}, got {getattr(self, name)}", field=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """What is decided for the rows of a table.

    Parameters
    ----------
    experiment
        Name of a running experiment.
    name
        Stands in every request id; the same name and row get the same decision. 1 to 60
        characters.
    customer_column
        Column of the caller's customer ids.
    id_column
        Column that tells rows apart, 1 to 64 characters each; empty: the row's number from 1.
    time_zone
        IANA name in which slot times are read; empty: UTC.
    """

    experiment: str
    name: str
    customer_column: str = "customer_id"
    id_column: str = ""
    time_zone: str = ""

    def __post_init__(self) -> None:
        if not 0 < len(self.name) <= MAX_CAMPAIGN or "\0" in self.name:
            raise InvalidInputError(f"needs 1 to {MAX_CAMPAIGN} characters", field="campaign")


def spec_of(client: BanditClient, experiment: str) -> ExperimentSpec:
    """Read an experiment's specification from the server."""
    return convert.spec(client.get_experiment(experiment).spec)


def chunk_rows(spec: ExperimentSpec, wanted: int = CHUNK) -> int:
    """Give the rows of one request: as wanted, unless they would make a message too large."""
    return max(min(wanted, _MOST_BYTES // (4 * len(spec.schema.fields) + 256)), 1)


def request(
    campaign: Campaign,
    spec: ExperimentSpec,
    rows: pa.Table,
    *,
    first: int = 0,
    schema_hash: bytes = b"",
) -> tuple[pb.PackedContexts, list[str]]:
    """Pack some rows of a campaign; give the message, and the rows' keys.

    Parameters
    ----------
    first
        Rows of the campaign before these.

    Raises
    ------
    InvalidInputError
        Naming row and column.
    """
    if campaign.id_column:
        keys = tables.texts(rows, campaign.id_column, MAX_KEY, first=first)
    else:
        keys = [f"{number:06d}" for number in range(first + 1, first + 1 + rows.num_rows)]
    packed = tables.matrix(rows, spec.schema, first=first)
    message = pb.PackedContexts(
        experiment=campaign.experiment,
        customer_ids=tables.texts(
            rows, campaign.customer_column, convert.MAX_CUSTOMER_ID, first=first
        ),
        request_ids=[f"{campaign.name}-{key}" for key in keys],
        rows=packed.tobytes(),
        columns=packed.shape[1],
        time_zone=campaign.time_zone,
        schema_hash=schema_hash,
    )
    return message, keys


def decide_many(
    client: BanditClient,
    campaign: Campaign,
    rows: Rows,
    *,
    pace: Pace = Pace(),
) -> Iterator[pa.Table]:
    """Decide for every row, in order, a chunk at a time.

    Parameters
    ----------
    client
        Its timeout holds for one chunk, retries included; half a minute is sensible.
    rows
        An Arrow table, or mappings by column name.
    pace
        How much at a time.

    Yields
    ------
        A table for every chunk, in order: id, customer_id, request_id, decision_id, action,
        variant, channel, slot, send_at, propensity, group, reason, snapshot_version, sequence
        and decided_at.

    Raises
    ------
    BanditError
        What the server refused, or that it can not be reached; asking again with the same
        campaign and rows is safe.
    """
    spec = spec_of(client, campaign.experiment)
    size = chunk_rows(spec, pace.chunk)
    whole = as_table(rows)
    starts = range(0, whole.num_rows, size)

    def ask(start: int) -> pa.Table:
        message, keys = request(campaign, spec, whole.slice(start, size), first=start)
        return answer(client, message, keys)

    with bar(campaign.experiment, whole.num_rows, shown=pace.progress) as step:
        for table in in_flight(ask, starts, pace.flight):
            step(table.num_rows)
            yield table


def answer(client: BanditClient, message: pb.PackedContexts, keys: list[str]) -> pa.Table:
    """Ask for packed decisions; give them as a table."""
    found = client.decide_packed(message)
    return tables.decided(keys, list(message.customer_ids), list(message.request_ids), found)


@dataclass(slots=True)
class Rewarded:
    """What became of many reward events: counts by disposition, and those not recorded."""

    recorded: int = 0
    duplicate: int = 0
    late: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    """Row, counted from 1, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is reported from the rows of a table.

    Parameters
    ----------
    experiment
        Name of the experiment.
    name
        Stands in the event ids of rows that have none; the same name and row are one event.
    kind
        Kind of event of all rows; empty: column ``name`` tells.
    id_column
        Column of event ids; empty: the report's name and the row's number from 1.
    """

    experiment: str
    name: str
    kind: str = ""
    id_column: str = ""


def reward_many(
    client: BanditClient,
    report: Report,
    rows: Rows,
    *,
    pace: Pace = Pace(),
) -> Rewarded:
    """Report an event for every row.

    Parameters
    ----------
    rows
        Column ``decision_id``; ``name`` unless the report has one kind; where there are such
        columns ``value`` (else 1) and ``occurred_at`` (else now).
    client, pace
        As in ``decide_many``.

    Raises
    ------
    BanditError
        What the server refused of a whole chunk, or that it can not be reached; reporting all
        again is safe. An event that can not be recorded alone is in the result.
    """
    whole, chunk = as_table(rows), pace.chunk
    found = Rewarded()

    def tell(start: int) -> tuple[int, pb.PackedRewardResults]:
        message = events(report, whole.slice(start, chunk), first=start)
        return start, client.record_packed(message)

    with bar(report.experiment, whole.num_rows, shown=pace.progress) as step:
        for start, results in in_flight(tell, range(0, whole.num_rows, chunk), pace.flight):
            marks = np.frombuffer(results.dispositions, dtype=np.uint8)
            found.recorded += int((marks == pb.DISPOSITION_RECORDED).sum())
            found.duplicate += int((marks == pb.DISPOSITION_DUPLICATE).sum())
            found.late += int((marks == pb.DISPOSITION_LATE).sum())
            found.refused += [(start + e.index + 1, e.error.message) for e in results.errors]
            step(len(marks))
    return found


def events(report: Report, rows: pa.Table, *, first: int = 0) -> pb.PackedRewards:
    """Pack some rows of a report."""
    message = pb.PackedRewards(
        experiment=report.experiment,
        decision_ids=tables.uuids(rows, "decision_id", first=first),
    )
    if report.id_column:
        message.event_ids.extend(tables.texts(rows, report.id_column, convert.MAX_ID, first=first))
    else:
        message.event_prefix, message.first_number = report.name, first + 1
    kinds = [report.kind]
    if not report.kind:
        names = tables.texts(rows, "name", 64, first=first)
        kinds = sorted(set(names))
        if len(kinds) > 64:
            raise InvalidInputError("more than 64 kinds of event", field='column "name"')
        places = {kind: place for place, kind in enumerate(kinds)}
        message.kinds = bytes([places[name] for name in names])
    message.names.extend(kinds)
    worth = np.ones(rows.num_rows)
    if "value" in rows.column_names:
        worth = tables.values(rows, "value", first=first)
    message.values = worth.astype("<f8").tobytes()
    if "occurred_at" in rows.column_names:
        at = tables.instants(rows, "occurred_at", first=first)
        message.occurred_at = at.astype("<i8").tobytes()
    return message


def in_flight(work: Callable[[A], R], items: Iterable[A], most: int) -> Iterator[R]:
    """Do some work for every item, ``most`` at a time; give the results in order."""
    coming = iter(items)
    with ThreadPoolExecutor(most, thread_name_prefix="campaign") as pool:
        waiting: deque[Future[R]] = deque(pool.submit(work, one) for one in islice(coming, most))
        try:
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(work, one) for one in islice(coming, 1))
                yield done
        finally:
            for future in waiting:
                future.cancel()


def as_table(rows: Rows) -> pa.Table:
    """Give rows as an Arrow table."""
    if isinstance(rows, pa.Table):
        return rows
    try:
        return pa.Table.from_pylist([dict(row) for row in rows])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InvalidInputError(f"are no table: {error}", field="rows") from None


@contextmanager
def bar(title: str, total: int, *, shown: bool = True, done: int = 0) -> Iterator[Step]:
    """Show a progress bar of so many rows; give the function that moves it."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not (shown and console.is_terminal),
    )
    task = progress.add_task(title, total=total, completed=done, rate="")

    def step(n: int) -> None:
        progress.update(task, advance=n)
        speed = progress.tasks[0].speed
        progress.update(task, rate=f"{speed:,.0f}/s" if speed else "")

    with progress:
        yield step
