"""A log larger than memory may be: written in batches, evaluated and replayed in batches.

Run with ``python -m benchmarks.large_log [ROWS] [REPLICATES]``: 5,000,000 rows and 200 replicates
unless told otherwise. Every command runs in a process of its own, whose largest memory is told;
fails if it reaches 2 GB.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LIMIT = 2.0
"""GB."""

BATCH = 250_000
FIELDS = 8
ACTIONS = 10
SPEC = f"""
name = "large"
[actions]
variants = {[f"v{i}" for i in range(ACTIONS)]}
channels = ["mail"]
{
    "".join(
        f'''
[[context]]
name = "x{i}"
kind = "number"
bounds = [-3, 3]
'''
        for i in range(FIELDS)
    )
}
[outcome]
window = 3600
aggregation = "max"
[[outcome.rewards]]
name = "click"
[policy]
terms = [{{ of = "context:variant" }}]
"""
_COUNTED = """
import atexit, re, sys
from pathlib import Path
status = Path("/proc/self/status")  # unlike ru_maxrss it knows nothing of the parent
atexit.register(lambda: print("peak", re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]))
sys.argv = ["banditctl", *sys.argv[1:]]
from server.commands import run
sys.exit(run())
"""


class Measured(NamedTuple):
    """One command: its last word, seconds, and largest memory in GB."""

    said: str
    seconds: float
    peak: float


def write(path: Path, rows: int, *, group: int = BATCH) -> None:
    """Write a uniform log with everything that an export has ids and keys for."""
    schema = pa.schema(
        [
            ("sequence", pa.int64()),
            ("decision_id", pa.string()),
            ("customer_key", pa.string()),
            ("decided_at", pa.timestamp("us", "UTC")),
            ("action", pa.int32()),
            ("propensity", pa.float64()),
            ("outcome", pa.float64()),
            *((f"context.x{i}", pa.float64()) for i in range(FIELDS)),
        ]
    )
    tastes = np.random.default_rng(0).normal(0.0, 0.5, (FIELDS, ACTIONS))
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, max(BATCH, group)):
            n = min(max(BATCH, group), rows - start)
            batch = _batch(start, n, tastes)
            writer.write_table(pa.table(batch, schema=schema), row_group_size=group)


def _batch(start: int, n: int, tastes: np.ndarray) -> dict[str, object]:
    rng = np.random.default_rng([1, start])
    x = rng.normal(size=(n, FIELDS))
    actions = rng.integers(0, ACTIONS, n)
    rates = 1.0 / (1.0 + np.exp(2.0 - (x * tastes[:, actions].T).sum(axis=1)))
    places = np.arange(start, start + n)
    ids = rng.bytes(16 * n).hex()
    return {
        "sequence": places + 1,
        "decision_id": [ids[i : i + 32] for i in range(0, 32 * n, 32)],
        "customer_key": [f"{c:032x}" for c in rng.integers(0, 1_000_000, n).tolist()],
        "decided_at": pa.array(1_700_000_000_000_000 + places * 1_000, pa.timestamp("us", "UTC")),
        "action": actions,
        "propensity": np.full(n, 1.0 / ACTIONS),
        "outcome": (rng.random(n) < rates).astype(np.float64),
        **{f"context.x{i}": x[:, i] for i in range(FIELDS)},
    }


def measure(folder: Path, *arguments: str) -> Measured:
    """Run a command in a process of its own.

    Raises
    ------
    RuntimeError
        If it fails.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _COUNTED, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    peak = re.search(r"^peak (\d+)$", done.stdout, re.MULTILINE)
    if done.returncode or peak is None:
        raise RuntimeError(f"{arguments[0]} ended with {done.returncode}: {done.stderr}")
    said = [line for line in done.stdout.splitlines() if not line.startswith("peak ")]
    return Measured(said[-1], time.perf_counter() - began, int(peak[1]) / 2**20)


def evaluated(folder: Path, replicates: int) -> Measured:
    """Evaluate the log of a folder: one action for everybody, all rows, all estimators."""
    return measure(
        folder,
        *("evaluate", "log.parquet", "--spec", "large.toml", "--policy", "v3"),
        *("--replicates", str(replicates)),
    )


def replayed(folder: Path) -> Measured:
    """Replay the log of a folder."""
    return measure(
        folder, "replay", "--log", "log.parquet", "--spec", "large.toml", "--every", "100000"
    )


def main() -> dict[str, float]:
    """Write, evaluate and replay; end with an error if it takes too much memory."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    replicates = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "large.toml").write_text(SPEC)
        began = time.perf_counter()
        write(folder / "log.parquet", rows)
        size = (folder / "log.parquet").stat().st_size / 2**30
        print(
            f"{rows:,} rows, {size:.2f} GB on disk, written in {time.perf_counter() - began:.0f} s"
        )
        for what, one in (
            ("evaluate", evaluated(folder, replicates)),
            ("replay", replayed(folder)),
        ):
            print(f"{what}: {one.seconds:.0f} s, {one.peak:.2f} GB at most; {one.said}")
            found |= {f"{what}_seconds": one.seconds, f"{what}_gb": one.peak}
            if one.peak >= LIMIT:
                sys.exit(f"error: {what} took {one.peak:.2f} GB, and {LIMIT:.0f} GB is allowed")
    return found


if __name__ == "__main__":
    main()
