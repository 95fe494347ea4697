"""Tables on disk, Parquet or CSV, a batch at a time: what can not be read says so, and where."""

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from bandit.errors import InvalidInputError

BATCH = 65_536
"""Rows read at a time."""

_CELLS = 1 << 23
_BUFFER = 1 << 20
_BLOCK = 1 << 22
_TEXT = (".csv", ".csv.gz")
_BROKEN = (pa.ArrowException, OSError, EOFError, ValueError, MemoryError, KeyError, zlib.error)
"""What pyarrow raises where the bytes are not what they should be."""


STAMP = "banditctl.columns"
"""Where a file says which columns it was written with: its end has no checksum of its own."""


class Batch(NamedTuple):
    """Some rows in a row: columns by name, and the number of the first row, from 1."""

    first: int
    columns: Mapping[str, pa.Array]
    size: int


class Source:
    """A table on disk.

    Parameters
    ----------
    path
        ``.csv`` or ``.csv.gz`` with a line of names first, every column read as text and an
        empty cell as missing; anything else is read as Parquet.

    Attributes
    ----------
    types
        Arrow's type of every column.
    rows
        How many rows there are; None: not known before they are read.
    metadata
        What the file says of itself.

    Raises
    ------
    InvalidInputError
        If the file is not there, is empty, or is no such table.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.is_text = self.path.name.lower().endswith(_TEXT)
        self.rows: int | None = None
        self.metadata: dict[str, str] = {}
        with reading(self.path):
            if not self.path.is_file():
                raise InvalidInputError("there is no such file", field=str(self.path))
            if self.path.stat().st_size == 0:
                raise InvalidInputError("is empty: not even a header", field=str(self.path))
            names, types = self._open_text() if self.is_text else self._open_parquet()
        twice = [name for name, n in Counter(names).items() if n > 1]
        if twice:
            raise InvalidInputError(f"column {twice[0][:64]!r} is there twice", field=str(path))
        self.types: dict[str, Any] = dict(zip(names, types, strict=True))

    def _open_text(self) -> tuple[list[str], list[Any]]:
        opened = gzip.open if self.path.suffix.lower() == ".gz" else open
        with opened(self.path, "rt", encoding="utf-8", newline="") as lines:
            names = next(csv.reader([lines.readline(_BUFFER)]), [])
        if not names:
            raise InvalidInputError("has no line of column names", field=str(self.path))
        return names, [pa.string()] * len(names)

    def _open_parquet(self) -> tuple[list[str], list[Any]]:
        with self._parquet() as file:
            schema = file.schema_arrow
            self.rows = file.metadata.num_rows
            told = schema.metadata or {}
        self.metadata = {
            k.decode(): v.decode() for k, v in told.items() if k.startswith(b"banditctl.")
        }
        stamp = self.metadata.get(STAMP)
        if stamp is not None and stamp != columns_of(schema):
            raise InvalidInputError(
                "its columns are not those that it was written with: the end of the file was "
                "changed",
                field=str(self.path),
            )
        return list(schema.names), list(schema.types)

    def _parquet(self) -> Any:  # noqa: ANN401  pyarrow has no types
        with self.path.open("rb") as begun:
            if begun.read(4) != b"PAR1":
                raise InvalidInputError(
                    "is no Parquet file: it does not begin with PAR1; a CSV needs the ending .csv",
                    field=str(self.path),
                )
        return pq.ParquetFile(
            self.path,
            buffer_size=_BUFFER,  # read a row group as a stream, however large it is
            pre_buffer=False,
            page_checksum_verification=True,
        )

    def batches(self, columns: Sequence[str], size: int = BATCH) -> Iterator[Batch]:
        """Read some columns, at most ``size`` rows at a time.

        Raises
        ------
        InvalidInputError
            If the file ends too early or its bytes were changed, where that shows.
        """
        size = max(min(size, _CELLS // max(len(columns), 1)), 1)
        first = 1
        read = self._text_batches if self.is_text else self._parquet_batches
        with reading(self.path) as at:
            for batch in read(list(columns), size):
                at.row = first
                batch.validate(full=True)
                yield Batch(first, {name: batch.column(name) for name in columns}, len(batch))
                first += len(batch)
                at.row = first
        if self.rows is not None and first - 1 != self.rows:
            raise InvalidInputError(
                f"holds {first - 1} rows, and its footer says {self.rows}", field=str(self.path)
            )

    def _parquet_batches(self, columns: list[str], size: int) -> Iterator[Any]:
        with self._parquet() as file:
            yield from file.iter_batches(batch_size=size, columns=columns, use_threads=False)

    def _text_batches(self, columns: list[str], size: int) -> Iterator[Any]:
        broken: list[Any] = []

        def refuse(row: Any) -> str:  # noqa: ANN401
            broken.append(row)
            return "error"

        try:
            with pa_csv.open_csv(
                self.path,
                pa_csv.ReadOptions(block_size=_BLOCK, use_threads=False),
                pa_csv.ParseOptions(invalid_row_handler=refuse),
                pa_csv.ConvertOptions(
                    column_types=dict.fromkeys(self.types, pa.string()),
                    include_columns=columns,
                    null_values=[""],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                ),
            ) as reader:
                for block in reader:
                    for start in range(0, len(block), size):
                        yield block.slice(start, size)
        except pa.ArrowInvalid:
            if not broken:
                raise
            row = broken[0]
            at = "" if row.number is None else f": row {row.number - 1}"
            raise InvalidInputError(
                f"has {row.actual_columns} cells, the header has {row.expected_columns}",
                field=f"{self.path}{at}",
            ) from None


def columns_of(schema: Any) -> str:  # noqa: ANN401
    """Say which columns there are: name and type, a line each, as ``STAMP`` keeps it."""
    return str(schema.remove_metadata())


class _At:
    """Where a reader is: the first row that it has not given yet."""

    row = 0


@contextmanager
def reading(path: Path) -> Iterator[_At]:
    """Turn whatever the reading of a broken file raises into one error that names the file."""
    at = _At()
    try:
        yield at
    except InvalidInputError:
        raise
    except _BROKEN as error:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        where = f" at row {at.row} or after" if at.row else ""
        raise InvalidInputError(f"can not be read{where}: {told}", field=str(path)) from None
