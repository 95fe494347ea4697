"""What the server carries on one core, against an empty grpcio handler with the same messages.

The server is pinned to one core and the client to another; empty handler and server take
turns, and the ratio is taken pair by pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from bandit.spec import ExperimentSpec
from benchmarks import batches
from benchmarks.load import write_messages
from server.client import BanditClient
from server.pb import bandit_pb2 as pb

DECIDE = "/bandit.v1.DecisionService/Decide"
REWARD = "/bandit.v1.DecisionService/RecordReward"
MUST, AIM = 0.55, 0.7
"""Share of an empty handler's throughput."""
P50, P99 = 1.5, 8.0
"""Milliseconds at half of the load that the server carries."""

Make = Callable[[int, int], list[bytes]]
"""From round and number to that many messages."""


def load(  # noqa: PLR0913
    address: str, method: str, file: Path, flight: int, seconds: float, pid: int, rate: float = 0.0
) -> dict[str, Any]:
    """Load a server from the other core; give the client's counts and the server's CPU."""
    process = psutil.Process(pid)
    before = sum(process.cpu_times()[:2])
    command = [sys.executable, "-m", "benchmarks.load", address, method, str(file)]
    options = ["--flight", str(flight), "--seconds", str(seconds), "--core", str(_cores()[1])]
    options += ["--rate", str(rate)] if rate else []
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
    spec = batches.experiment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        empty, port = start(["benchmarks.empty_server"])
        served, address = start(
            ["server", "serve", "--database", f"sqlite:///{folder / 'b.db'}", "--port", "0"]
        )
        ends = ((f"127.0.0.1:{port}", empty.pid), (address, served.pid))
        try:
            with BanditClient(address, timeout=30.0) as client:
                client.create_experiment(spec)
                client.start_experiment(spec.name, override="a measurement")
            print("Server, one core, SQLite, every answer durable before it is given")
            found = _unary("Decide", DECIDE, ends, told, folder / "unary", _decides(spec))
            found |= _half(found["Decide_per_second"], ends[1], folder / "unary", spec)
            ids = batches.decided(address, spec, f"r{time.time_ns()}")
            found |= _unary(
                "RecordReward", REWARD, ends, told, folder / "unary", _rewards(spec, ids)
            )
            lines = batches.measure(folder, spec, ends, load, told.seconds)
        finally:
            for process in (empty, served):
                process.terminate()
                process.wait()
    found |= batches.show([*lines, batches.fold()])
    print(json.dumps(found))
    return found


def _decides(spec: ExperimentSpec) -> Make:
    return lambda k, n: [
        r.SerializeToString() for r in batches.requests(spec.name, f"u{k}-{time.time_ns()}", n)
    ]


def _rewards(spec: ExperimentSpec, ids: list[bytes]) -> Make:
    return lambda k, n: [
        pb.RecordRewardRequest(
            experiment=spec.name,
            event_id=f"u{k}-{i}",
            decision_id=ids[i % len(ids)].hex(),
            name="click",
            value=1.0,
        ).SerializeToString()
        for i in range(n)
    ]


def _unary(  # noqa: PLR0913  what is measured, where, and how often
    what: str,
    method: str,
    ends: tuple[batches.End, batches.End],
    told: argparse.Namespace,
    file: Path,
    make: Make,
) -> dict[str, Any]:
    """Let empty handler and server take turns; print and give the median of the ratios."""
    pairs = []
    for k in range(told.rounds):
        write_messages(file, make(k, int(told.seconds * 12_000)))
        options = (method, file, told.flight, told.seconds)
        nothing, served = (load(address, *options, pid) for address, pid in ends)
        pairs.append((nothing, served))
        print(
            f"    {what} {k + 1}: empty {nothing['per_second']:6.0f}/s, "
            f"served {served['per_second']:6.0f}/s, "
            f"ratio {served['per_second'] / nothing['per_second']:.2f}, "
            f"core {served['server_cpu']:.0%} busy, "
            f"client {nothing['client_cpu']:.0%} / {served['client_cpu']:.0%}",
            flush=True,
        )
    ratio = statistics.median(d["per_second"] / e["per_second"] for e, d in pairs)
    rate = statistics.median(d["per_second"] for _, d in pairs)
    verdict = "reached" if ratio >= MUST else "MISSED"
    print(
        f"  unary {what}: {ratio:.2f} of an empty handler ({rate:.0f}/s)   "
        f"goal {MUST}: {verdict}, aim {AIM}"
    )
    return {f"{what}_ratio": round(ratio, 3), f"{what}_per_second": round(rate)}


def _half(rate: float, end: batches.End, file: Path, spec: ExperimentSpec) -> dict[str, Any]:
    """Decide at half of the rate that the server carries; print and give the waits."""
    address, pid = end
    write_messages(file, _decides(spec)(99, int(rate * 5)))
    found = load(address, DECIDE, file, 256, 8.0, pid, rate / 2.0)
    p50, p99 = found["p50_ms"], found["p99_ms"]
    verdict = "reached" if p50 < P50 and p99 < P99 else "MISSED"
    print(
        f"  unary Decide at {found['per_second']:.0f}/s: p50 {p50:.2f} ms, p99 {p99:.1f} ms   "
        f"goal {P50} and {P99:.0f} ms: {verdict}"
    )
    return {"half_p50_ms": round(p50, 3), "half_p99_ms": round(p99, 2)}


if __name__ == "__main__":
    main()
