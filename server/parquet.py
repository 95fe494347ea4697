"""The log as Parquet: one row per decision; ``docs/reference/log-format.md`` has the columns."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.engine import Connection

from bandit import spec_file
from bandit.context import ContextField
from bandit.decision import Group, Reason
from server import revisions, storage
from server.live import LiveExperiment

BATCH = 10_000
_INSTANT = pa.timestamp("us", tz="UTC")
_KINDS = {
    "number": pa.float64(),
    "cyclic": pa.float64(),
    "flag": pa.bool_(),
    "category": pa.string(),
}


def schema(fields: tuple[ContextField, ...]) -> pa.Schema:
    """Give the columns: the decision's, then ``context.NAME`` for every field."""
    return pa.schema(
        [
            pa.field("sequence", pa.int64(), nullable=False),
            pa.field("decision_id", pa.string(), nullable=False),
            pa.field("request_id", pa.string(), nullable=False),
            pa.field("customer_key", pa.string(), nullable=False),
            pa.field("decided_at", _INSTANT, nullable=False),
            pa.field("group", pa.string(), nullable=False),
            pa.field("reason", pa.string(), nullable=False),
            pa.field("snapshot_version", pa.int64(), nullable=False),
            pa.field("action", pa.int32()),
            pa.field("variant", pa.string()),
            pa.field("channel", pa.string()),
            pa.field("slot", pa.string()),
            pa.field("propensity", pa.float64(), nullable=False),
            pa.field("outcome", pa.float64()),
            pa.field("exclusions", pa.string()),
            pa.field("time_zone", pa.string(), nullable=False),
            pa.field("request_hash", pa.string(), nullable=False),
            *(pa.field(f"context.{f.name}", _KINDS[f.kind]) for f in fields),
        ]
    )


def write(
    connection: Connection, live: LiveExperiment, out: Path, step: Callable[[int], None]
) -> int:
    """Write an experiment's decisions; give how many.

    The file appears under its name only when it is whole.

    Raises
    ------
    OSError
        If it can not be written.
    """
    columns = stamped(schema(live.experiment.spec.context), connection, live)
    written, last = 0, 0
    with (
        whole_file(out) as partial,
        pq.ParquetWriter(partial, columns, write_page_checksum=True) as writer,
    ):
        while rows := storage.decided_after(connection, live.id, last, BATCH):
            last = rows[-1].seq
            batch = [_record(live, row) for row in rows]
            writer.write_table(pa.Table.from_pylist(batch, schema=columns))
            written += len(rows)
            step(len(rows))
    return written


def stamped(columns: pa.Schema, connection: Connection, live: LiveExperiment) -> pa.Schema:
    """Say in a file which columns it has, and which experiment it is of.

    The end of a Parquet file, which names its columns, has no checksum. Where the experiment was
    edited while it ran, every specification that decided is named with its first snapshot.
    """
    told = {
        "banditctl.columns": str(columns),
        "banditctl.spec": spec_file.to_json(live.experiment.spec),
        "banditctl.tenant": live.tenant,
    }
    stages = revisions.stages(connection, live.id)
    if len(stages) > 1:
        listed = [{"version": version, "spec": json.loads(spec)} for version, spec in stages]
        told["banditctl.revisions"] = json.dumps(listed, separators=(",", ":"))
    return columns.with_metadata(told)


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """Give a file to write, which takes its name once it is whole, and else is gone."""
    partial = out.with_name(out.name + ".partial")
    try:
        yield partial
        partial.replace(out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _record(live: LiveExperiment, row: Any) -> dict[str, object]:  # noqa: ANN401  a database row
    spec = live.experiment.spec
    names: tuple[str | None, ...] = (None, None, None)
    if row.action is not None:
        names = tuple(level.name for level in spec.actions.levels(row.action))
    values = spec.schema.values(np.frombuffer(row.context, dtype="<f8"))
    return {
        "sequence": row.seq,
        "decision_id": str(UUID(bytes=row.decision_id)),
        "request_id": row.request_id,
        "customer_key": row.customer.hex(),
        "decided_at": row.decided_at,
        "group": Group(row.traffic_group).name.lower(),
        "reason": Reason(row.reason).name.lower(),
        "snapshot_version": row.snapshot_version,
        "action": row.action,
        "variant": names[0],
        "channel": names[1],
        "slot": names[2],
        "propensity": row.propensity,
        "outcome": row.outcome,
        "exclusions": row.exclusions,
        "time_zone": row.time_zone,
        "request_hash": row.request_hash.hex(),
        **{f"context.{name}": value for name, value in values.items()},
    }
