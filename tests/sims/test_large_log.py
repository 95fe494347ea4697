"""A log is read a batch at a time: memory does not grow as the log does.

``python -m benchmarks.large_log`` shows it with 5,000,000 rows under 2 GB.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from bandit.spec_file import parse
from benchmarks.large_log import SPEC, evaluated, write
from sims.log import batches

ROOT = Path(__file__).parents[2]
_COUNTED = """
import sys, tracemalloc
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from bandit.spec_file import parse
from sims.log import batches
from benchmarks.large_log import SPEC
path = Path(sys.argv[1])
tracemalloc.start()
rows = {expression}
print(rows, pa.default_memory_pool().max_memory(), tracemalloc.get_traced_memory()[1])
"""
BATCHES = 'sum(len(log) for log in batches(path, parse(SPEC, "toml")))'
TABLE = "pq.read_table(path, use_threads=False).num_rows"


def most(expression: str, path: Path) -> tuple[int, int]:
    """Evaluate in a process of its own; give the rows, and the most bytes asked for.

    Those that Arrow and Python ask for: what an allocator takes of the system differs each time.
    """
    done = subprocess.run(
        [sys.executable, "-c", _COUNTED.format(expression=expression), path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows, arrow, python = map(int, done.stdout.split())
    return rows, arrow + python


def growth(expression: str, folder: Path) -> int:
    """Give by how much reading 350,000 rows takes more than 100,000, in bytes."""
    taken = []
    for rows in (100_000, 350_000):
        read, bytes_ = most(expression, folder / f"{rows}.parquet")
        assert read == rows
        taken.append(bytes_)
    return taken[1] - taken[0]


def test_reading_takes_a_batch_and_the_ids(tmp_path: Path):
    """All rows are in one row group; a table of them takes more."""
    for rows in (100_000, 350_000):
        write(tmp_path / f"{rows}.parquet", rows, group=rows)
    assert growth(BATCHES, tmp_path) < 50e6
    assert growth(TABLE, tmp_path) > 50e6


def test_a_command_takes_little_memory(tmp_path: Path):
    """What is imported takes half of it."""
    (tmp_path / "large.toml").write_text(SPEC)
    write(tmp_path / "log.parquet", 100_000)
    found = evaluated(tmp_path, 40)
    assert found.said == "evaluated: 1 policies, 10 estimates on 100000 rows"
    assert found.peak < 0.8


def test_what_was_written_is_read(tmp_path: Path):
    path = tmp_path / "log.parquet"
    write(path, 1_000)
    (log,) = batches(path, parse(SPEC, "toml"))
    written = pq.read_table(path)
    assert log.actions.tolist() == written["action"].to_pylist()
    assert log.rows is not None
    np.testing.assert_array_equal(log.rows[:, 3], written["context.x3"].to_numpy())
