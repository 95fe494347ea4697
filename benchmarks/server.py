"""What the server carries on one core, against an empty grpcio handler with the same messages.

The server is pinned to one core and the client to another; empty handler and server take
turns, and the ratio is taken pair by pair.
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
from typing import Any

import numpy as np
import psutil

from bandit import spec_file
from bandit.spec import ExperimentSpec
from benchmarks.load import write_messages
from server import convert
from server.client import BanditClient
from server.pb import bandit_pb2 as pb
from sims import worlds

DECIDE = "/bandit.v1.DecisionService/Decide"
BATCH = "/bandit.v1.DecisionService/BatchDecide"
BATCH_SIZE = 256


def experiment() -> ExperimentSpec:
    """Give the shipped example, with a window that stays open while it is measured."""
    text = (worlds.EXAMPLES / "spring_sale.toml").read_text()
    spec = spec_file.parse(text, "toml")
    return dataclasses.replace(spec, outcome=dataclasses.replace(spec.outcome, window=86_400.0))


def requests(name: str, tag: str, n: int) -> list[pb.DecideRequest]:
    """Prepare requests of different customers."""
    world = worlds.read(worlds.EXAMPLES / "spring_sale_world.toml")
    random = np.random.default_rng(1)
    return [
        pb.DecideRequest(
            experiment=name,
            request_id=f"{tag}-{i}",
            customer_id=f"customer-{i}",
            context=convert.context_message(world.customer(random)),
            time_zone="Europe/Berlin",
        )
        for i in range(n)
    ]


def load(  # noqa: PLR0913
    address: str, method: str, file: Path, flight: int, seconds: float, pid: int
) -> dict[str, Any]:
    """Load a server from the other core; give the client's counts and the server's CPU."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    command = [sys.executable, "-m", "benchmarks.load", address, method, str(file)]
    options = ["--flight", str(flight), "--seconds", str(seconds), "--core", str(_cores()[1])]
    printed = subprocess.run(
        [*command, *options], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, Any] = json.loads(printed)
    found["server_cpu"] = (sum(process.cpu_times()[:2]) - before) / found["seconds"]
    if found["errors"]:
        raise SystemExit(f"{found['errors']} errors, such as {found['first_error']}")
    return found


def start(module: list[str]) -> tuple[subprocess.Popen[str], str]:
    """Start a process on the first core; give it and its first line."""
    process = subprocess.Popen(
        [sys.executable, "-m", *module],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    psutil.Process(process.pid).cpu_affinity([_cores()[0]])
    line = process.stdout.readline().strip() if process.stdout else ""
    return process, line.removeprefix("serving on ")


def _cores() -> tuple[int, int]:
    mine = sorted(os.sched_getaffinity(0))
    return mine[0], mine[-1]


def main() -> dict[str, Any]:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--flight", type=int, default=64)
    told, _ = parser.parse_known_args()
    spec = experiment()
    pairs = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty, port = start(["benchmarks.empty_server"])
        served, address = start(
            ["server", "serve", "--database", f"sqlite:///{folder / 'b.db'}", "--port", "0"]
        )
        try:
            with BanditClient(address, timeout=30.0) as client:
                client.create_experiment(spec)
                client.start_experiment(spec.name)
            for k in range(told.rounds):
                file = folder / f"unary-{k}"
                asked = requests(spec.name, f"u{k}", int(told.seconds * 12_000))
                write_messages(file, [r.SerializeToString() for r in asked])
                options = (DECIDE, file, told.flight, told.seconds)
                nothing = load(f"127.0.0.1:{port}", *options, empty.pid)
                decided = load(address, *options, served.pid)
                pairs.append((nothing, decided))
                ratio = decided["per_second"] / nothing["per_second"]
                print(
                    f"  round {k + 1}: empty {nothing['per_second']:6.0f}/s, "
                    f"Decide {decided['per_second']:6.0f}/s, ratio {ratio:.2f}, "
                    f"client busy {nothing['client_cpu']:.0%} / {decided['client_cpu']:.0%}",
                    flush=True,
                )
            batches = _batches(folder, address, spec, served.pid, told.seconds)
        finally:
            for process in (empty, served):
                process.terminate()
                process.wait()
    return _print(pairs, batches)


def _batches(folder: Path, address: str, spec: ExperimentSpec, pid: int, seconds: float) -> float:
    file = folder / "batches"
    n = int(seconds * 150)
    asked = requests(spec.name, f"b{time.time_ns()}", n * BATCH_SIZE)
    parts = [asked[i : i + BATCH_SIZE] for i in range(0, len(asked), BATCH_SIZE)]
    write_messages(file, [pb.BatchDecideRequest(requests=p).SerializeToString() for p in parts])
    found = load(address, BATCH, file, 2, seconds, pid)
    return float(found["per_second"] * BATCH_SIZE)


def _print(pairs: list[tuple[dict[str, Any], dict[str, Any]]], batches: float) -> dict[str, Any]:
    ratio = statistics.median(d["per_second"] / e["per_second"] for e, d in pairs)
    rate = statistics.median(d["per_second"] for _, d in pairs)
    p99 = statistics.median(d["p99_ms"] for _, d in pairs)
    print("Server, one core, SQLite, every decision durable before it is answered")
    verdict = "reached" if ratio >= 0.5 else "MISSED"
    figures = f"{ratio:.2f} of an empty handler ({rate:.0f}/s, p99 {p99:.1f} ms)"
    print(f"  unary Decide: {figures}   goal 0.50: {verdict}")
    verdict = "reached" if batches >= 8_000 else "MISSED"
    print(f"  BatchDecide of {BATCH_SIZE}: {batches:.0f} decisions/s   goal 8000: {verdict}")
    found = {"ratio": round(ratio, 3), "decide_per_second": round(rate), "batch": round(batches)}
    print(json.dumps(found))
    return found


if __name__ == "__main__":
    main()
