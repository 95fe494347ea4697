"""What was learned, in order, as Parquet: with the exported log it repeats every decision.

``docs/reference/log-format.md`` has the columns; ``sims/replay/rerun.py`` reads them.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import select
from sqlalchemy.engine import Connection

from server import catalogue, lessons, omissions, parquet
from server.live import LiveExperiment
from server.omissions import Omission
from server.schema import bases, decisions, outcomes

BATCH = 10_000
SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("decision_sequence", pa.int64()),
        pa.field("value", pa.float64()),
        pa.field("replaced", pa.float64()),
        pa.field("version", pa.int64()),
        pa.field("digest", pa.binary()),
        pa.field("posterior", pa.binary()),
    ]
)


def write(
    connection: Connection, live: LiveExperiment, out: Path, step: Callable[[int], None]
) -> int:
    """Write what an experiment's learner learned and published; give how many rows.

    Raises
    ------
    OSError
        If it can not be written.
    """
    columns = parquet.stamped(SCHEMA, connection, live)
    rows, written = _rows(connection, live), 0
    with (
        parquet.whole_file(out) as partial,
        pq.ParquetWriter(partial, columns, write_page_checksum=True) as writer,
    ):
        while batch := list(islice(rows, BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=columns))
            written += len(batch)
            step(len(batch))
    return written


def _rows(connection: Connection, live: LiveExperiment) -> Iterator[dict[str, object]]:
    """Give the rows, as ``retention.fold`` would learn them up to every snapshot."""
    base = connection.execute(select(bases).where(bases.c.experiment_id == live.id)).first()
    start = at = first = 0
    if base is not None:
        start = at = int(base.seq)
        first = int(base.version)
        yield {
            "sequence": start,
            "kind": "base",
            "version": first,
            "digest": base.digest,
            "posterior": base.posterior,
        }
    every = omissions.after(connection, live.id, 0)
    for row in catalogue.list_snapshots(connection, live.id):
        if row.seq < start or row.version < first:
            continue
        heard = [one for one in every if one.seq <= row.seq]
        if heard and heard[-1].seq > at:
            at = heard[-1].seq
            yield {"sequence": at, "kind": "anew"}
            yield from _outcomes(connection, live, (start, at), heard)
        yield from _outcomes(connection, live, (at, row.seq), heard)
        at = int(row.seq)
        yield {
            "sequence": at,
            "kind": "snapshot",
            "version": row.version,
            "digest": row.digest,
        }
    heard = [one for one in every if one.seq <= at]
    yield from _outcomes(connection, live, (at, None), heard)


def _outcomes(
    connection: Connection,
    live: LiveExperiment,
    stretch: tuple[int, int | None],
    heard: Sequence[Omission],
) -> Iterator[dict[str, object]]:
    """Give what there is to learn in a stretch of the log."""
    after, upto = stretch
    while True:
        part = lessons.read(
            *(connection, live.id, live.experiment.spec.outcome),
            after=after,
            upto=upto,
            left_out=heard,
        )
        if not part.read:
            return
        places = _decided(connection, live.id, part)
        for lesson in part.rows:
            yield {
                "sequence": lesson.seq,
                "kind": "outcome",
                "decision_sequence": places[lesson.seq],
                "value": lesson.value,
                "replaced": None if lesson.replaced != lesson.replaced else lesson.replaced,
            }
        after = part.last


def _decided(connection: Connection, experiment_id: int, part: lessons.Lessons) -> dict[int, int]:
    """Give the place of the decision of every outcome of a stretch."""
    first = part.rows[0].seq if part.rows else part.last
    found = connection.execute(
        select(outcomes.c.seq, decisions.c.seq.label("decided"))
        .join_from(
            outcomes,
            decisions,
            (decisions.c.experiment_id == outcomes.c.experiment_id)
            & (decisions.c.seq == outcomes.c.decision_seq),
        )
        .where(
            outcomes.c.experiment_id == experiment_id,
            outcomes.c.seq >= first,
            outcomes.c.seq <= part.last,
        )
    )
    return {row.seq: row.decided for row in found}
