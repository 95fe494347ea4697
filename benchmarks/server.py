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
from pathlib import Path
from typing import Any

import psutil

from benchmarks import batches
from benchmarks.load import write_messages
from server.client import BanditClient

DECIDE = "/bandit.v1.DecisionService/Decide"


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
    spec = batches.experiment()
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
                client.start_experiment(spec.name, override="a measurement")
            for k in range(told.rounds):
                file = folder / f"unary-{k}"
                asked = batches.requests(spec.name, f"u{k}", int(told.seconds * 12_000))
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
            ends = ((f"127.0.0.1:{port}", empty.pid), (address, served.pid))
            lines = batches.measure(folder, spec, ends, load, told.seconds)
        finally:
            for process in (empty, served):
                process.terminate()
                process.wait()
    found = _print(pairs) | batches.show([*lines, batches.fold()])
    print(json.dumps(found))
    return found


def _print(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    ratio = statistics.median(d["per_second"] / e["per_second"] for e, d in pairs)
    rate = statistics.median(d["per_second"] for _, d in pairs)
    p99 = statistics.median(d["p99_ms"] for _, d in pairs)
    print("Server, one core, SQLite, every decision durable before it is answered")
    verdict = "reached" if ratio >= 0.5 else "MISSED"
    figures = f"{ratio:.2f} of an empty handler ({rate:.0f}/s, p99 {p99:.1f} ms)"
    print(f"  unary Decide: {figures}   goal 0.50: {verdict}")
    return {"ratio": round(ratio, 3), "decide_per_second": round(rate)}


if __name__ == "__main__":
    main()
