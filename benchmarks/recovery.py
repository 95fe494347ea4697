"""How long a start takes on a million log entries: ``python -m benchmarks.recovery``.

The log is written through the storage functions, thousands of entries at a time. A first start
folds and publishes it; more entries follow the last snapshot; then starts are timed, from the
process to its first answer.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import grpc
import psutil

from bandit import rng
from bandit.spec import ExperimentSpec
from benchmarks.batches import experiment, requests
from benchmarks.server import start
from server import ledger, storage
from server.access import DEFAULT_TENANT
from server.catalogue import find_experiment
from server.client import BanditClient
from server.database import Database
from server.pb import bandit_pb2 as pb
from server.pb import bandit_pb2_grpc as stubs
from server.storage import DecisionRow, EventRow

GOAL = 15.0
CHUNK = 1_000
TAIL = 10_000


def serve(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start a server on the database of a folder."""
    where = ["--database", f"sqlite:///{folder / 'b.db'}", "--port", "0"]
    return start(["server", "serve", *where])


def end(process: subprocess.Popen[str]) -> None:
    """Let a server drain and end."""
    process.terminate()
    process.wait(120)


def prepare(folder: Path, spec: ExperimentSpec) -> None:
    """Create the experiment, and decide once for each of a thousand customers."""
    process, address = serve(folder)
    try:
        with BanditClient(address, timeout=60) as client, grpc.insecure_channel(address) as channel:
            client.create_experiment(spec)
            client.start_experiment(spec.name, override="a measurement")
            asked = pb.BatchDecideRequest(requests=requests(spec.name, "model", CHUNK))
            stubs.DecisionServiceStub(channel).BatchDecide(asked, timeout=60)
    finally:
        end(process)


def fill(folder: Path, spec: ExperimentSpec, entries: int) -> None:
    """Append entries: decisions, and to every fifth an event that closes its outcome."""
    database = Database(f"sqlite:///{folder / 'b.db'}")
    reward = spec.outcome.rewards[0]
    most = reward.bounds[1]
    try:
        with database.reader.connect() as connection:
            row = find_experiment(connection, DEFAULT_TENANT, spec.name)
            assert row is not None  # noqa: S101  it was created above
            made = storage.decided_after(connection, row.id, 0, CHUNK)
            models = [storage.logged(one).row for one in made if one.action is not None]
            begun = row.next_seq
        while begun_now(database, spec) - begun < entries:
            now = time.time_ns() // 1_000
            with database.writer.begin() as connection:
                for _ in range(20):
                    rows = [fresh(model, now) for model in models]
                    storage.append_decisions(connection, row.id, [rows])
                    events = [
                        EventRow(one.request_id, one.decision_id, reward.name, most, now, now)
                        for one in rows[::5]
                    ]
                    ledger.append_events(connection, row.id, spec.outcome, events, now)
    finally:
        database.close()


def begun_now(database: Database, spec: ExperimentSpec) -> int:
    """Give the next place of the log."""
    with database.reader.connect() as connection:
        row = find_experiment(connection, DEFAULT_TENANT, spec.name)
        return int(row.next_seq) if row is not None else 0


_numbers = count()


def fresh(model: DecisionRow, now: int) -> DecisionRow:
    """Give another decision like one that was made."""
    request = f"filled-{now}-{next(_numbers)}"
    one = rng.decision_id(bytes(32), "filled", request, at_ms=now // 1_000)
    return model._replace(decision_id=one.bytes, request_id=request, decided_at=now)


def learn(folder: Path, spec: ExperimentSpec) -> float:
    """Let a server fold and publish all there is; give the seconds it took."""
    process, address = serve(folder)
    began = time.perf_counter()
    try:
        with BanditClient(address, timeout=60) as client:
            seen = -1
            while True:
                now = client.get_experiment(spec.name).snapshot.outcomes
                if now == seen and now > 0:
                    return time.perf_counter() - began
                seen = now
                time.sleep(2.0)
    finally:
        end(process)


def timed(folder: Path, spec: ExperimentSpec) -> tuple[float, float, int]:
    """Start a server; give seconds to its first answer, megabytes, and the snapshot's place."""
    began = time.perf_counter()
    process, address = serve(folder)
    try:
        with BanditClient(address, timeout=60) as client:
            found = client.get_experiment(spec.name)
            took = time.perf_counter() - began
        memory = psutil.Process(process.pid).memory_info().rss / 2**20
        return took, memory, found.snapshot.sequence
    finally:
        end(process)


def main() -> None:
    """Measure and print the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--starts", type=int, default=3)
    told = parser.parse_args()
    shipped = experiment()
    first, *rest = shipped.outcome.rewards
    rewards = (dataclasses.replace(first, terminal=True), *rest)
    spec = dataclasses.replace(
        shipped, outcome=dataclasses.replace(shipped.outcome, rewards=rewards)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, spec)
        began = time.perf_counter()
        fill(folder, spec, told.entries)
        print(f"wrote the log in {time.perf_counter() - began:.0f} s", flush=True)
        print(f"learned it in {learn(folder, spec):.0f} s", flush=True)
        fill(folder, spec, TAIL)
        size = (folder / "b.db").stat().st_size / 2**20
        starts = []
        for number in range(1, told.starts + 1):
            took, memory, place = timed(folder, spec)
            starts.append(took)
            print(f"  start {number}: ready in {took:.1f} s, {memory:.0f} MB, snapshot at {place}")
    worst = max(starts)
    print(
        json.dumps({"entries": told.entries, "ready": round(worst, 1), "database_mb": round(size)})
    )
    print(
        f"{told.entries} log entries ({size:.0f} MB): ready in {worst:.1f} s at worst, "
        f"goal {GOAL:.0f}: {'reached' if worst < GOAL else 'MISSED'}"
    )
    sys.exit(worst >= GOAL)


if __name__ == "__main__":
    main()
