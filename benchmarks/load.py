"""A client that loads one server method from one core: raw bytes, many requests in flight."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from queue import SimpleQueue

import grpc


def main() -> None:
    """Send prepared messages for a while; print counts and latencies as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("method")
    parser.add_argument("messages", type=Path, help="length-prefixed messages")
    parser.add_argument("--flight", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--core", type=int)
    parser.add_argument("--rate", type=float, help="requests a second; else as many as go")
    parser.add_argument("--channels", type=int, default=1)
    told = parser.parse_args()
    if told.core is not None:
        os.sched_setaffinity(0, {told.core})
    sys.setswitchinterval(0.001)
    free = _free(told.flight, told.channels)
    latencies: list[float] = []
    errors: list[str] = []
    own = [("grpc.use_local_subchannel_pool", 1)]  # each channel a connection
    channels = [grpc.insecure_channel(told.address, own) for _ in range(told.channels)]
    for channel in channels:
        grpc.channel_ready_future(channel).result(10)
    calls = [channel.unary_unary(told.method) for channel in channels]

    def send(channel: int, message: bytes, began: float) -> None:
        future = calls[channel].future(message, timeout=30.0)

        def done(finished: grpc.Future) -> None:
            latencies.append(time.perf_counter() - began)
            if finished.code() is not grpc.StatusCode.OK:
                errors.append(finished.details())
            free.put(channel)

        future.add_done_callback(done)

    began, cpu = time.perf_counter(), time.process_time()
    for number, message in enumerate(read_messages(told.messages)):
        due = began + number / told.rate if told.rate else 0.0
        time.sleep(max(due - time.perf_counter(), 0.0))
        channel = free.get()
        asked = due or time.perf_counter()  # one that is sent too late has waited since it was due
        if asked - began > told.seconds:
            free.put(channel)
            break
        send(channel, message, asked)
    for _ in range(told.flight):
        free.get()
    seconds = time.perf_counter() - began
    ordered = sorted(latencies)
    print(
        json.dumps(
            {
                "requests": len(ordered),
                "seconds": seconds,
                "per_second": len(ordered) / seconds,
                "client_cpu": (time.process_time() - cpu) / seconds,
                "p50_ms": 1e3 * ordered[len(ordered) // 2],
                "p99_ms": 1e3 * ordered[int(len(ordered) * 0.99)],
                "errors": len(errors),
                "first_error": errors[0] if errors else "",
            }
        )
    )
    for channel in channels:
        channel.close()


def _free(flight: int, channels: int) -> "SimpleQueue[int]":
    """Give the channels that may carry a request; each has its share, and its own pace."""
    free: SimpleQueue[int] = SimpleQueue()
    for number in range(flight):
        free.put(number % channels)
    return free


def read_messages(path: Path) -> list[bytes]:
    """Read length-prefixed messages."""
    data = path.read_bytes()
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        found.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def write_messages(path: Path, messages: list[bytes]) -> None:
    """Write length-prefixed messages."""
    path.write_bytes(b"".join(len(m).to_bytes(4, "little") + m for m in messages))


if __name__ == "__main__":
    main()
