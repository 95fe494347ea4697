"""Two workers on PostgreSQL against one: ``python -m benchmarks.workers``.

Server, database and client share the machine, so beside the ratio it prints what each had of
the cores. One worker and two take turns on databases of their own.
"""

import argparse
import dataclasses
import json
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
CHANNELS, EXPERIMENTS = 8, 4


class Kind(NamedTuple):
    """What is called: title, method, entries in a message, requests in flight."""

    title: str
    method: str
    size: int
    flight: int


KINDS = (
    Kind("unary Decide", "Decide", 1, 128),
    Kind(f"BatchDecide, {batches.NAMED} named", "BatchDecide", batches.NAMED, 8),
)


def main() -> None:
    """Measure and print the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    told = parser.parse_args()
    print("PostgreSQL, every answer durable before it is given; all on the same cores")
    postgres = PostgresServer()
    ratios: dict[str, list[float]] = {kind.title: [] for kind in KINDS}
    try:
        for _ in range(told.rounds):
            one, two = (measure(postgres, workers, told.seconds) for workers in (1, 2))
            for title, found in ratios.items():
                found.append(two[title] / one[title])
                print(f"  {title}: {one[title]:.0f}/s, {two[title]:.0f}/s, {found[-1]:.2f} times")
    finally:
        postgres.stop()
    medians = {title: statistics.median(found) for title, found in ratios.items()}
    for title, ratio in medians.items():
        verdict = "reached" if ratio >= GOAL else "MISSED"
        print(f"two workers against one, {title}: {ratio:.2f}   goal {GOAL}: {verdict}")
    sys.exit(max(medians.values()) < GOAL)


def measure(postgres: PostgresServer, workers: int, seconds: float) -> dict[str, float]:
    """Load a server of so many workers; give what it carried a second of each kind."""
    specs = [
        dataclasses.replace(batches.experiment(), name=f"campaign-{i}") for i in range(EXPERIMENTS)
    ]
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--workers", str(workers)]
    secret = postgres.folder / "secret"
    secret.write_bytes(b"bench" * 8)
    served = subprocess.Popen(
        [*command, "--database", postgres.fresh(), "--secret-file", str(secret)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
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
        return {kind.title: _loaded(address, kind, specs, seconds, served.pid) for kind in KINDS}
    finally:
        served.terminate()
        served.wait(60)


def _loaded(
    address: str, kind: Kind, specs: list[ExperimentSpec], seconds: float, pid: int
) -> float:
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
        before = _cpu(pid)
        command = [sys.executable, "-m", "benchmarks.load", address]
        command += [f"/bandit.v1.DecisionService/{kind.method}", str(file)]
        command += ["--flight", str(kind.flight), "--seconds", str(seconds)]
        command += ["--channels", str(CHANNELS)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = json.loads(printed)
    if found["errors"]:
        raise SystemExit(f"{found['errors']} errors, such as {found['first_error']}")
    cpu = (_cpu(pid) - before) / found["seconds"]
    print(f"    {kind.title}: servers {cpu:.2f} cores, client {found['client_cpu']:.2f}")
    return float(found["per_second"] * kind.size)


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
