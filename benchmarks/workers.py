"""Two workers on PostgreSQL against one: ``python -m benchmarks.workers``.

Servers, database and client share the machine. So beside the ratio it prints what each had of the
cores, and the ratio that those cores could give at most: where one worker with its database and its
client takes 1.4 of two cores, twice as much work does not fit. What a second worker costs is then
seen in what a core of servers carries. One worker and two take turns on databases of their own.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from bandit.spec import ExperimentSpec
from benchmarks import batches
from benchmarks.load import write_messages
from server.client import BanditClient
from server.pb import bandit_pb2 as pb
from tests.postgres import PostgresServer

GOAL = 1.6
CHANNELS, EXPERIMENTS = 16, 4
CORES = len(os.sched_getaffinity(0))


class Found(NamedTuple):
    """What was carried in a second, and the cores that servers, database and client had of it."""

    rate: float
    servers: float
    database: float
    client: float

    @property
    def cores(self) -> float:
        """All cores that were busy with it."""
        return self.servers + self.database + self.client


class Kind(NamedTuple):
    """What is called: title, method, entries in a message, requests in flight."""

    title: str
    method: str
    size: int
    flight: int


KINDS = (
    Kind("unary Decide", "Decide", 1, 128),
    Kind(f"BatchDecide, {batches.NAMED} named", "BatchDecide", batches.NAMED, 16),
)


def main() -> None:
    """Measure and print the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    told = parser.parse_args()
    print("PostgreSQL, every answer durable before it is given; all on the same cores")
    postgres = PostgresServer()
    found: dict[str, list[tuple[Found, Found]]] = {kind.title: [] for kind in KINDS}
    try:
        for _ in range(told.rounds):
            one, two = (measure(postgres, workers, told.seconds) for workers in (1, 2))
            for title, pairs in found.items():
                pairs.append((one[title], two[title]))
    finally:
        postgres.stop()
    verdicts = [_judged(title, pairs) for title, pairs in found.items()]
    sys.exit(not all(verdicts))


def _judged(title: str, pairs: list[tuple[Found, Found]]) -> bool:
    """Print what the rounds say of two workers against one; give whether that is enough."""
    ratio = statistics.median(two.rate / one.rate for one, two in pairs)
    most = CORES / statistics.median(one.cores for one, _ in pairs)
    carried = statistics.median(
        (two.rate / two.servers) / (one.rate / one.servers) for one, two in pairs
    )
    print(
        f"two workers against one, {title}: {ratio:.2f} times; {CORES} cores could give "
        f"{most:.2f}; a core of servers carries {carried:.2f} of what it did"
    )
    if most >= GOAL:
        verdict = "reached" if ratio >= GOAL else "MISSED"
    else:
        verdict = "can not be seen on these cores"
        if 2 * carried < GOAL:
            verdict = f"MISSED, two cores of servers carry {2 * carried:.2f} times as much"
    print(f"    goal {GOAL}: {verdict}")
    return "MISSED" not in verdict


def measure(postgres: PostgresServer, workers: int, seconds: float) -> dict[str, Found]:
    """Load a server of so many workers; give what it carried a second of each kind."""
    specs = [
        dataclasses.replace(batches.experiment(), name=f"campaign-{i}") for i in range(EXPERIMENTS)
    ]
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--workers", str(workers)]
    command += ["--log-level", "error"]  # what goes wrong is seen
    secret = postgres.folder / "secret"
    secret.write_bytes(b"bench" * 8)
    served = subprocess.Popen(
        [*command, "--database", postgres.fresh(), "--secret-file", str(secret)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert served.stdout is not None  # noqa: S101  it is a pipe
    address = served.stdout.readline().split()[2]
    try:
        with BanditClient(address, timeout=60.0) as client:
            for spec in specs:
                client.create_experiment(spec)
                client.start_experiment(spec.name, override="a measurement")
        time.sleep(1.0)  # the other workers look once a second for what is new
        pids = (served.pid, postgres.pid)
        print(f"  {workers} worker{'s' * (workers > 1)}")
        return {kind.title: _loaded(address, kind, specs, seconds, pids) for kind in KINDS}
    finally:
        served.terminate()
        served.wait(60)


def _loaded(
    address: str, kind: Kind, specs: list[ExperimentSpec], seconds: float, pids: tuple[int, int]
) -> Found:
    asked = [
        batches.requests(spec.name, f"{kind.method}{time.time_ns()}", int(seconds * 4_000))
        for spec in specs
    ]
    messages: list[bytes] = []
    for of_each in zip(*(_packed(kind, requests) for requests in asked), strict=True):
        messages += of_each
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "messages"
        write_messages(file, messages)
        before = [_cpu(pid) for pid in pids]
        command = [sys.executable, "-m", "benchmarks.load", address]
        command += [f"/bandit.v1.DecisionService/{kind.method}", str(file)]
        command += ["--flight", str(kind.flight), "--seconds", str(seconds)]
        command += ["--channels", str(CHANNELS)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(printed)
    if found["errors"]:
        raise SystemExit(f"{found['errors']} errors, such as {found['first_error']}")
    cores = [(_cpu(pid) - at) / found["seconds"] for pid, at in zip(pids, before, strict=True)]
    carried = Found(found["per_second"] * kind.size, *cores, found["client_cpu"])
    print(
        f"    {kind.title}: {carried.rate:.0f}/s; cores: servers {carried.servers:.2f}, "
        f"PostgreSQL {carried.database:.2f}, client {carried.client:.2f}"
    )
    return carried


def _packed(kind: Kind, requests: list[pb.DecideRequest]) -> list[bytes]:
    if kind.size == 1:
        return [one.SerializeToString() for one in requests]
    return [
        pb.BatchDecideRequest(requests=requests[at : at + kind.size]).SerializeToString()
        for at in range(0, len(requests) - kind.size + 1, kind.size)
    ]


def _cpu(pid: int) -> float:
    """Give the seconds of processor time of a process and of those it started."""
    process = psutil.Process(pid)
    return sum(sum(p.cpu_times()[:2]) for p in (process, *process.children(recursive=True)))


if __name__ == "__main__":
    main()
