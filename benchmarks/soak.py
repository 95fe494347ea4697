"""Half an hour under a steady load: ``python -m benchmarks.soak --minutes 30``.

Samples the server's memory, file descriptors, threads and write-ahead log, and prints their
slopes over the second half, when all caches are full. The exit status is 1 if one grows.
"""

import argparse
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import psutil

from benchmarks.batches import experiment, requests
from benchmarks.recovery import end, serve
from server.client import BanditClient
from server.pb import bandit_pb2 as pb
from server.pb import bandit_pb2_grpc as stubs

CALLERS = 8
WAL_MEGABYTES = 64.0
"""What the write-ahead log may grow to: sixteen times what asks for a checkpoint."""
GROWTH = 3.0
"""Megabytes of memory over the second half that are taken for flat: caches move as much."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The server at one moment."""

    minutes: float
    megabytes: float
    files: int
    threads: int
    wal: float


class Load:
    """Callers that decide and reward at a steady rate.

    Parameters
    ----------
    address, name
        Of the server and of its experiment.
    rate
        Decisions a second, of all callers together.
    """

    def __init__(self, address: str, name: str, rate: float) -> None:
        self._template = requests(name, "soak", 1)[0]
        self._pause = CALLERS / rate
        self._stop = threading.Event()
        self._channel = grpc.insecure_channel(address)
        self._stub = stubs.DecisionServiceStub(self._channel)
        self.calls = [0] * CALLERS
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._work, args=(k,)) for k in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _work(self, k: int) -> None:
        request = pb.DecideRequest()
        request.CopyFrom(self._template)
        reward = experiment().outcome.rewards[0]
        due = time.monotonic()
        while not self._stop.wait(max(due - time.monotonic(), 0.0)):
            due = max(due + self._pause, time.monotonic() - 1.0)
            request.request_id = request.customer_id = f"{k}-{self.calls[k]}"
            try:
                made = self._stub.Decide(request, timeout=30).decision
                if self.calls[k] % 2:
                    event = pb.RecordRewardRequest(
                        experiment=request.experiment,
                        event_id=request.request_id,
                        decision_id=made.decision_id,
                        name=reward.name,
                        value=reward.bounds[1],
                    )
                    self._stub.RecordReward(event, timeout=30)
            except grpc.RpcError as error:
                self.errors.append(f"{error.code().name}: {error.details()}")
            self.calls[k] += 1

    def stop(self) -> None:
        """Let every caller finish."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._channel.close()


def sample(process: psutil.Process, folder: Path, minutes: float) -> Sample:
    """Look at the server once."""
    wal = folder / "b.db-wal"
    with process.oneshot():
        return Sample(
            minutes,
            process.memory_info().rss / 2**20,
            process.num_fds(),
            process.num_threads(),
            wal.stat().st_size / 2**20 if wal.exists() else 0.0,
        )


def slope(samples: list[Sample], name: str) -> float:
    """Give what something grows by in a minute, over the second half, by Theil and Sen.

    The median of the slopes between samples: one garbage collection does not move it.
    """
    half = samples[len(samples) // 2 :][:: max(len(samples) // 400, 1)]
    x = np.array([one.minutes for one in half])
    y = np.array([float(getattr(one, name)) for one in half])
    rise, run = np.subtract.outer(y, y), np.subtract.outer(x, x)
    return float(np.median(rise[run > 0] / run[run > 0]))


def main() -> None:
    """Load, look, and print the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=300.0, help="decisions a second")
    told = parser.parse_args()
    spec = experiment()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        served, address = serve(folder)
        with BanditClient(address, timeout=60.0) as client:
            client.create_experiment(spec)
            client.start_experiment(spec.name, override="a measurement")
        load = Load(address, spec.name, told.rate)
        began = time.monotonic()
        try:
            while (minutes := (time.monotonic() - began) / 60) < told.minutes:
                one = sample(psutil.Process(served.pid), folder, minutes)
                samples.append(one)
                if len(samples) % 30 == 1:
                    print(
                        f"  {minutes:5.1f} min: {sum(load.calls)} decisions, "
                        f"{one.megabytes:.0f} MB, {one.files} files, {one.threads} threads, "
                        f"WAL {one.wal:.1f} MB",
                        flush=True,
                    )
                time.sleep(1.0)
        finally:
            load.stop()
            end(served)
    memory, files = slope(samples, "megabytes"), slope(samples, "files")
    wal = max(one.wal for one in samples)
    print(f"{sum(load.calls)} decisions, {len(load.errors)} errors {load.errors[:1]}")
    grown = memory * told.minutes / 2
    is_flat = grown < GROWTH and files < 0.01 and wal < WAL_MEGABYTES and not load.errors
    print(
        f"slope of memory {memory:+.3f} MB/min ({grown:+.1f} MB in the second half), "
        f"of file descriptors {files:+.3f}/min, "
        f"WAL at most {wal:.1f} MB: {'flat' if is_flat else 'GROWS'}"
    )
    sys.exit(not is_flat)


if __name__ == "__main__":
    main()
