"""Ten times more callers than a server takes: ``python -m benchmarks.overload``.

Peak and overload take turns in one run and are compared pair by pair, so that a machine that
others use, too, slows both. A caller that is turned away waits as long as RetryInfo says, then
sends the same request again. The last line is the verdict; the exit status is 1 if it missed.
"""

import argparse
import heapq
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import grpc
import psutil
from google.rpc import error_details_pb2, status_pb2

from benchmarks.batches import experiment, requests
from benchmarks.server import DECIDE, start
from server.client import BanditClient
from server.pb import bandit_pb2 as pb
from server.status import DETAILS_KEY

LIMIT = 64
"""Requests in flight that the server takes."""
TIMES = 10
GOAL = 0.8


@dataclass
class Phase:
    """What callers saw while they called.

    Attributes
    ----------
    codes
        How many calls ended with which status.
    seconds
        How long they called.
    waits
        Seconds of the calls that were served.
    unasked
        Refusals without RetryInfo.
    """

    codes: Counter[grpc.StatusCode] = field(default_factory=Counter)
    seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    unasked: int = 0

    @property
    def goodput(self) -> float:
        """Calls served a second."""
        return self.codes[grpc.StatusCode.OK] / self.seconds

    @property
    def p99(self) -> float:
        """Seconds within which 99 of 100 served calls were answered."""
        return sorted(self.waits)[int(0.99 * len(self.waits))]


class Callers:
    """Callers who each call again as soon as they are answered.

    Parameters
    ----------
    address
        Of the server.
    template
        What they ask, but for the request id.
    is_polite
        Whether they wait as RetryInfo says; else they call again at once.
    """

    def __init__(self, address: str, template: pb.DecideRequest, *, is_polite: bool = True) -> None:
        self._is_polite = is_polite
        self._channel = grpc.insecure_channel(address)
        grpc.channel_ready_future(self._channel).result(60)
        self._call = self._channel.unary_unary(DECIDE)
        self._template = template
        self._tag = f"{random.getrandbits(64):x}"
        self._numbers = count()
        self._lock = threading.Lock()
        self._waiting: list[tuple[float, int, bytes]] = []
        self._moved = threading.Condition()

    def run(self, flight: int, seconds: float) -> Phase:
        """Let so many callers call for a while; give what they saw."""
        self._phase = Phase()
        self._left = flight
        self._end = time.monotonic() + seconds
        began = time.monotonic()
        for _ in range(flight):
            self._send(self._next())
        with self._moved:
            while self._left:
                due = self._waiting[0][0] if self._waiting else self._end + 60.0
                self._moved.wait(max(due - time.monotonic(), 0.0005))
                now, ready = time.monotonic(), []
                while self._waiting and self._waiting[0][0] <= now:
                    ready.append(heapq.heappop(self._waiting)[2])
                self._moved.release()
                try:
                    for data in ready:
                        self._send(data)
                finally:
                    self._moved.acquire()
        self._phase.seconds = time.monotonic() - began
        return self._phase

    def _next(self) -> bytes:
        with self._lock:
            self._template.request_id = f"{self._tag}-{next(self._numbers)}"
            return self._template.SerializeToString()

    def _send(self, data: bytes) -> None:
        if time.monotonic() > self._end:
            self._leave()
            return
        began = time.monotonic()
        future = self._call.future(data, timeout=60.0)
        future.add_done_callback(lambda done: self._answered(done, data, began))

    def _answered(self, done: grpc.Future, data: bytes, began: float) -> None:
        code = done.code()
        phase = self._phase
        phase.codes[code] += 1
        if code is grpc.StatusCode.OK:
            phase.waits.append(time.monotonic() - began)
            self._send(self._next())
            return
        pause = _pause(done.trailing_metadata())
        phase.unasked += pause is None
        wait = (pause or 0.1) if self._is_polite else 0.0
        due = time.monotonic() + wait * random.uniform(0.9, 1.1)  # noqa: S311
        with self._moved:
            heapq.heappush(self._waiting, (due, next(self._numbers), data))
            self._moved.notify()

    def _leave(self) -> None:
        with self._moved:
            self._left -= 1
            self._moved.notify()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def _pause(metadata: tuple[tuple[str, str | bytes], ...] | None) -> float | None:
    """Give the seconds that a refusal asks to wait, or None if it asks for none."""
    for key, value in metadata or ():
        if key == DETAILS_KEY:
            told = error_details_pb2.RetryInfo()
            for detail in status_pb2.Status.FromString(value).details:
                if detail.Unpack(told):
                    return told.retry_delay.seconds + told.retry_delay.nanos / 1e9
    return None


@dataclass
class Overload:
    """Pairs of a peak and an overload, and the server's memory after each overload.

    Attributes
    ----------
    decided
        Calls served in all, those before the first pair with them.
    """

    pairs: list[tuple[Phase, Phase]]
    megabytes: list[float]
    decided: int = 0

    @property
    def ratio(self) -> float:
        """Goodput under overload as a share of the peak's: the median of the pairs."""
        return statistics.median(over.goodput / peak.goodput for peak, over in self.pairs)

    @property
    def codes(self) -> Counter[grpc.StatusCode]:
        """How all calls ended."""
        return sum((phase.codes for pair in self.pairs for phase in pair), Counter())

    @property
    def unasked(self) -> int:
        """Refusals without RetryInfo."""
        return sum(phase.unasked for pair in self.pairs for phase in pair)

    @property
    def grown(self) -> float:
        """Megabytes that the server grew by from the first overload to the last."""
        return self.megabytes[-1] - self.megabytes[0]


def measure(  # noqa: PLR0913
    address: str,
    pid: int,
    template: pb.DecideRequest,
    *,
    limit: int = LIMIT,
    rounds: int,
    seconds: float,
    is_polite: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> Overload:
    """Let peak and overload take turns."""
    found = Overload([], [])
    callers = Callers(address, template, is_polite=is_polite)
    try:
        found.decided = callers.run(limit, seconds / 2).codes[grpc.StatusCode.OK]  # until warm
        for number in range(1, rounds + 1):
            peak = callers.run(limit, seconds)
            over = callers.run(TIMES * limit, seconds)
            found.pairs.append((peak, over))
            found.decided += sum(phase.codes[grpc.StatusCode.OK] for phase in (peak, over))
            found.megabytes.append(psutil.Process(pid).memory_info().rss / 2**20)
            shed = over.codes[grpc.StatusCode.UNAVAILABLE]
            tell(
                f"  round {number}: peak {peak.goodput:.0f}/s, overload {over.goodput:.0f}/s "
                f"({over.goodput / peak.goodput:.0%}), turned away {shed / over.seconds:.0f}/s, "
                f"p99 of the served {1e3 * over.p99:.0f} ms, server {found.megabytes[-1]:.0f} MB"
            )
    finally:
        callers.close()
    return found


def main() -> None:
    """Measure and print the verdict."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rude", action="store_true", help="callers ignore RetryInfo")
    told = parser.parse_args()
    spec = experiment()
    [template] = requests(spec.name, "overload", 1)
    with tempfile.TemporaryDirectory() as name:
        where = ["--database", f"sqlite:///{Path(name) / 'b.db'}", "--port", "0"]
        os.environ["BANDIT_IN_FLIGHT"] = str(LIMIT)
        served, address = start(["server", "serve", *where])
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        try:
            with BanditClient(address, timeout=60.0) as client:
                client.create_experiment(spec)
                client.start_experiment(spec.name, override="a measurement")
            print(f"{TIMES * LIMIT} callers of a server that takes {LIMIT} requests at a time")
            found = measure(
                address,
                served.pid,
                template,
                rounds=told.rounds,
                seconds=told.seconds,
                is_polite=not told.rude,
                tell=print,
            )
        finally:
            served.terminate()
            served.wait()
    allowed = {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    is_kept = found.ratio >= GOAL and set(found.codes) <= allowed and found.unasked == 0
    seen = ", ".join(f"{code.name} {n}" for code, n in found.codes.most_common())
    print(f"statuses: {seen}; {found.unasked} without RetryInfo; server grew {found.grown:.0f} MB")
    print(
        f"goodput at {TIMES}x is {found.ratio:.0%} of the peak, goal {GOAL:.0%}: "
        f"{'reached' if is_kept else 'MISSED'}"
    )
    sys.exit(not is_kept)


if __name__ == "__main__":
    main()
