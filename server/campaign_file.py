"""A campaign from file to file, that can be killed at any moment and goes on where it was.

Beside the result, in ``RESULT.parts``, stand a journal of what is decided and a file for every
chunk that is. Each appears whole or not at all, and each is on disk before the next step. A
chunk that was decided but not written is asked for again with the same request ids, and gets
its first answers.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from bandit.errors import ConflictError, InvalidInputError, StateError, UnavailableError
from bandit.spec import ExperimentSpec
from server import campaign as campaigns
from server.campaign import Campaign, Pace
from server.client import BanditClient
from server.packed import schema_hash

MARK = b"banditctl.campaign"
"""Key of the journal in a finished file's metadata."""

_SAYS = {
    "source": "the content of the input file",
    "experiment": "the experiment",
    "created_at": "the experiment (another one of the same name)",
    "campaign": "--campaign",
    "customer_column": "--customer-column",
    "id_column": "--id-column",
    "time_zone": "--time-zone",
}
"""What makes a job another one, as a user knows it."""


class Done(NamedTuple):
    """What was done: rows in all, of which before this run, and the campaign's name."""

    rows: int
    before: int
    campaign: str


def fingerprint(path: Path) -> str:
    """Give the SHA-256 of a file's content.

    Raises
    ------
    InvalidInputError
        If it can not be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInputError(f"can not be read: {error.strerror}", field=str(path)) from None


def read_table(path: Path) -> pa.Table:
    """Read a Parquet file.

    Raises
    ------
    InvalidInputError
        If it can not be read, is none, or has no rows.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        text = " ".join(str(error).split())[:300]
        if path.suffix.lower() in (".csv", ".tsv", ".txt"):
            text += "; pyarrow.csv.read_csv and pyarrow.parquet.write_table make one of a CSV file"
        raise InvalidInputError(f"can not be read as Parquet: {text}", field=str(path)) from None
    if table.num_rows == 0:
        raise InvalidInputError("has no rows", field=str(path))
    return table


def decide_file(
    client: BanditClient,
    source: Path,
    out: Path,
    asked: Callable[[str], Campaign],
    pace: Pace,
) -> Done:
    """Decide for every row of a file; go on where an earlier run ended.

    Parameters
    ----------
    source, out
        Parquet files.
    asked
        Gives the campaign, told the fingerprint of the source.
    pace
        How much at a time; a job keeps the chunk that it began with.

    Raises
    ------
    InvalidInputError
        Naming row and column of the input, before anything is decided.
    ConflictError
        If the result, or a job under way, is of another input or campaign.
    StateError
        If another process works on the same result.
    BanditError
        What the server refused, or that it can not be reached: the same call goes on later.
    """
    digest = fingerprint(source)
    campaign, table = asked(digest), read_table(source)
    info = client.get_experiment(campaign.experiment)
    spec = campaigns.spec_of(client, campaign.experiment)
    wanted = {
        "version": 1,
        "source": digest,
        "experiment": campaign.experiment,
        "created_at": info.created_at.ToMicroseconds(),
        "campaign": campaign.name,
        "customer_column": campaign.customer_column,
        "id_column": campaign.id_column,
        "time_zone": campaign.time_zone,
        "rows": table.num_rows,
        "chunk": campaigns.chunk_rows(spec, pace.chunk),
        "schema_hash": schema_hash(spec.schema).hex(),
    }
    try:
        return _Job(client, campaign, spec, table, source, out).run(wanted, pace)
    except OSError as error:
        raise UnavailableError(f"can not be written: {error}", field=str(out)) from None


class _Job:
    """The work on one result."""

    def __init__(  # noqa: PLR0913
        self,
        client: BanditClient,
        campaign: Campaign,
        spec: ExperimentSpec,
        table: pa.Table,
        source: Path,
        out: Path,
    ) -> None:
        self._client = client
        self._campaign = campaign
        self._spec = spec
        self._table = table
        self._source = source
        self._out = out
        self._folder = out.with_name(out.name + ".parts")

    def run(self, wanted: dict[str, Any], pace: Pace) -> Done:
        self._folder.mkdir(exist_ok=True)
        lock = FileLock(self._folder / "lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise StateError("another process is at work on it", field=str(self._out)) from None
        try:
            return self._run(wanted, pace)
        finally:
            lock.release()
            with suppress(OSError):  # nothing was begun: leave no empty folder behind
                if not any(path.name != "lock" for path in self._folder.iterdir()):
                    shutil.rmtree(self._folder)

    def _run(self, wanted: dict[str, Any], pace: Pace) -> Done:
        rows = self._table.num_rows
        if self._out.exists():
            _check_same(_mark_of(self._out), wanted, self._out, self._out)
            shutil.rmtree(self._folder, ignore_errors=True)
            return Done(rows, rows, self._campaign.name)
        journal = self._folder / "journal.json"
        if journal.exists():
            begun = json.loads(journal.read_bytes())
            _check_same(begun, wanted, self._out, self._folder)
        else:
            self._check_rows(wanted["chunk"])
            begun = wanted
            _write_whole(journal, lambda path: path.write_text(json.dumps(begun, indent=1)))
        starts = range(0, rows, begun["chunk"])
        missing = [start for start in starts if not self._part(start).exists()]
        before = rows - sum(min(begun["chunk"], rows - start) for start in missing)
        with campaigns.bar("decide", rows, shown=pace.progress, done=before) as step:
            for n in campaigns.in_flight(lambda s: self._decide(s, begun), missing, pace.flight):
                step(n)
        self._join(starts, begun)
        return Done(rows, before, self._campaign.name)

    def _check_rows(self, chunk: int) -> None:
        """Read every row once, so that a bad one stops the job before anything is decided."""
        keys: Counter[str] = Counter()
        for start in range(0, self._table.num_rows, chunk):
            try:
                part = self._table.slice(start, chunk)
                found = campaigns.request(self._campaign, self._spec, part, first=start)[1]
            except InvalidInputError as error:
                where = f"{self._source}: {error.field}"
                raise InvalidInputError(error.message, field=where) from None
            if self._campaign.id_column:
                keys.update(found)
        if keys and (twice := keys.most_common(1)[0])[1] > 1:
            raise InvalidInputError(
                f"{twice[0]!r} stands {twice[1]} times; ids tell rows apart",
                field=f'{self._source}: column "{self._campaign.id_column}"',
            )

    def _decide(self, start: int, begun: dict[str, Any]) -> int:
        part = self._table.slice(start, begun["chunk"])
        told = bytes.fromhex(begun["schema_hash"])
        message, keys = campaigns.request(
            self._campaign, self._spec, part, first=start, schema_hash=told
        )
        found = campaigns.answer(self._client, message, keys)
        _write_whole(self._part(start), lambda path: pq.write_table(found, path))
        return int(part.num_rows)

    def _part(self, start: int) -> Path:
        return self._folder / f"part-{start:012d}.parquet"

    def _join(self, starts: range, begun: dict[str, Any]) -> None:
        """Write all parts, in order, as the result."""
        parts = [self._part(start) for start in starts]
        columns = pq.read_schema(parts[0])
        marked = columns.with_metadata({MARK: json.dumps(begun).encode()})

        def write(path: Path) -> None:
            with pq.ParquetWriter(path, marked) as writer:
                for few in range(0, len(parts), 50):
                    tables = [pq.read_table(part) for part in parts[few : few + 50]]
                    whole = pa.concat_tables(tables).replace_schema_metadata(marked.metadata)
                    writer.write_table(whole)

        partial = self._folder / "result"
        write(partial)
        found = pq.read_metadata(partial).num_rows
        if found != begun["rows"]:
            raise ConflictError(
                f"the parts hold {found} rows, not {begun['rows']}: somebody changed them; delete "
                "the folder and run again, which repeats the same decisions",
                field=str(self._folder),
            )
        _sync(partial)
        partial.replace(self._out)
        _sync(self._out.parent)
        shutil.rmtree(self._folder, ignore_errors=True)


def _check_same(
    found: dict[str, Any] | None, wanted: dict[str, Any], out: Path, where: Path
) -> None:
    """Refuse to go on with, or to overwrite, the work of another job."""
    if found is None:
        raise ConflictError("exists and is no result of decide-file; name another", field=str(out))
    other = [told for key, told in _SAYS.items() if found.get(key) != wanted[key]]
    if other:
        raise ConflictError(
            f"was begun with other values: {', '.join(other)} changed since. Go on with what it "
            f"was begun with, or name another file for a job of its own (or delete {where})",
            field=str(out),
        )


def _mark_of(path: Path) -> dict[str, Any] | None:
    try:
        written = (pq.read_schema(path).metadata or {}).get(MARK)
        found: dict[str, Any] | None = json.loads(written) if written else None
    except (OSError, pa.ArrowException, ValueError):
        return None
    return found


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let a file appear under its name once it is whole and on disk."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    _sync(partial)
    partial.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
