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
_READ = """
import re, sys
from pathlib import Path
from bandit.spec_file import parse
from sims.log import batches
from benchmarks.large_log import SPEC
peak = lambda: re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
before = peak()
rows = sum(len(log) for log in batches(Path(sys.argv[1]), parse(SPEC, "toml")))
print(rows, before, peak())
"""


def grown(path: Path) -> tuple[int, int]:
    """Read a log in a process of its own; give its rows, and by how many bytes that grew."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows, before, after = map(int, done.stdout.split())
    return rows, 1_024 * (after - before)


def test_reading_takes_a_batch_and_the_ids(tmp_path: Path):
    """500,000 rows more would be 100 MB more; all are in one row group."""
    path, growth = tmp_path / "log.parquet", []
    for rows in (100_000, 600_000):
        write(path, rows, group=rows)
        read, more = grown(path)
        assert read == rows
        growth.append(more)
    assert growth[1] - growth[0] < 60e6


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
