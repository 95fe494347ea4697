"""What the server carries in batches, named and packed, and how fast the log is folded.

Every line but the last has its yardstick: an empty handler with the same messages, measured
just before.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bandit import spec_file
from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from benchmarks.load import write_messages
from server import convert
from server.client import BanditClient
from server.lessons import FOLD_ROWS, rows_of
from server.pb import bandit_pb2 as pb
from sims import worlds

DECIDE = "/bandit.v1.DecisionService/BatchDecide"
REWARD = "/bandit.v1.DecisionService/BatchRecordRewards"
NAMED, PACKED = 256, 2_000

Load = Callable[[str, str, Path, int, float, int], dict[str, Any]]
End = tuple[str, int]
"""Address and process of a server."""


class Line(NamedTuple):
    """One line of the table: what, entries a second, of an empty handler, and the goals.

    ``busy`` is the share of its core that the server had: less than 1 on a machine with other work.
    """

    what: str
    rate: float
    empty: float | None
    must: float
    aim: float
    busy: float = 1.0


def experiment() -> ExperimentSpec:
    """Give the shipped example, with a window that stays open while it is measured."""
    text = (worlds.EXAMPLES / "spring_sale.toml").read_text()
    spec = spec_file.parse(text, "toml")
    return dataclasses.replace(spec, outcome=dataclasses.replace(spec.outcome, window=86_400.0))


def customers(n: int) -> Floats:
    """Give contexts of customers of the shipped example, (n, fields)."""
    world = worlds.read(worlds.EXAMPLES / "spring_sale_world.toml")
    return worlds.Course(world, experiment(), seed=1).arrivals(0, n).rows


def requests(name: str, tag: str, n: int) -> list[pb.DecideRequest]:
    """Prepare requests of different customers."""
    values = experiment().schema.values
    contexts = [values(row) for row in customers(n)]
    return [
        pb.DecideRequest(
            experiment=name,
            request_id=f"{tag}-{i}",
            customer_id=f"customer-{i}",
            context=convert.context_message(contexts[i]),
            time_zone="Europe/Berlin",
        )
        for i in range(n)
    ]


def packed_contexts(spec: ExperimentSpec, tag: str, n: int, rows: int) -> list[pb.PackedContexts]:
    """Prepare ``n`` packed requests of so many customers each."""
    few = customers(rows).astype("<f4")
    return [
        pb.PackedContexts(
            experiment=spec.name,
            request_prefix=tag,
            first_number=k * rows,
            customer_ids=[f"customer-{k * rows + i}" for i in range(rows)],
            rows=few.tobytes(),
            columns=few.shape[1],
            time_zone="Europe/Berlin",
        )
        for k in range(n)
    ]


def measure(
    folder: Path, spec: ExperimentSpec, ends: tuple[End, End], load: Load, seconds: float
) -> list[Line]:
    """Load the empty handler, then the server, with each kind of batch."""
    tag = f"b{time.time_ns()}"
    named = requests(spec.name, tag, int(seconds * 130) * NAMED)
    decides = [
        pb.BatchDecideRequest(requests=named[at : at + NAMED]) for at in range(0, len(named), NAMED)
    ]
    packed = [
        pb.BatchDecideRequest(packed=one)
        for one in packed_contexts(spec, f"p{tag}", int(seconds * 50), PACKED)
    ]
    ids = decided(ends[1][0], spec, tag)
    rewards = [
        pb.BatchRecordRewardsRequest(events=_events(spec.name, f"{tag}-{k}", ids))
        for k in range(int(seconds * 120))
    ]
    columns = [
        pb.BatchRecordRewardsRequest(packed=_packed_events(spec.name, f"p{tag}-{k}", ids))
        for k in range(int(seconds * 120))
    ]
    kinds = [
        ("BatchDecide, 256 named", DECIDE, decides, NAMED, (12_000.0, 25_000.0)),
        ("BatchDecide, 2000 packed", DECIDE, packed, PACKED, (25_000.0, 100_000.0)),
        ("BatchRecordRewards, 256 named", REWARD, rewards, NAMED, (15_000.0, 15_000.0)),
        ("BatchRecordRewards, 256 packed", REWARD, columns, NAMED, (15_000.0, 15_000.0)),
    ]
    lines = []
    for what, method, messages, size, (must, aim) in kinds:
        file = folder / "batches"
        write_messages(file, [m.SerializeToString() for m in messages])
        empty, served = (load(address, method, file, 2, seconds, pid) for address, pid in ends)
        rates = [found["per_second"] * size for found in (served, empty)]
        lines.append(Line(what, *rates, must, aim, served["server_cpu"]))
    return lines


def decided(address: str, spec: ExperimentSpec, tag: str) -> list[bytes]:
    """Make decisions to report on; give their ids."""
    with BanditClient(address, timeout=60.0) as client:
        [asked] = packed_contexts(spec, f"d{tag}", 1, 10_000)
        found = client.decide_packed(asked).decision_ids
    return [found[at : at + 16] for at in range(0, len(found), 16)]


def _events(name: str, tag: str, ids: list[bytes]) -> list[pb.RecordRewardRequest]:
    random = np.random.default_rng(abs(hash(tag)))
    chosen = random.integers(0, len(ids), NAMED).tolist()
    return [
        pb.RecordRewardRequest(
            experiment=name,
            event_id=f"{tag}-{i}",
            decision_id=ids[one].hex(),
            name="click",
            value=1.0,
        )
        for i, one in enumerate(chosen)
    ]


def _packed_events(name: str, tag: str, ids: list[bytes]) -> pb.PackedRewards:
    random = np.random.default_rng(abs(hash(tag)))
    chosen = random.integers(0, len(ids), NAMED).tolist()
    return pb.PackedRewards(
        experiment=name,
        event_prefix=tag,
        decision_ids=b"".join([ids[one] for one in chosen]),
        names=["click"],
        values=np.ones(NAMED, dtype="<f8").tobytes(),
    )


def fold(n: int = 100_000) -> Line:
    """Fold logged contexts as the learner does, at three factors and twelve features."""
    fields = [
        {"name": f"f{i}", "kind": "number", "bounds": [0, 1], "required": True} for i in range(11)
    ]
    spec = spec_file.from_data(
        {
            "name": "fold",
            "actions": {
                "variants": [f"v{i}" for i in range(4)],
                "channels": [f"c{i}" for i in range(3)],
                "slots": [f"s{i}" for i in range(6)],
            },
            "context": fields,
            "outcome": {"window": 60, "rewards": [{"name": "click"}]},
        }
    )
    of = Experiment(spec, secret=bytes(32))
    random = np.random.default_rng(1)
    logged = [row.astype("<f8").tobytes() for row in random.random((n, len(fields)))]
    actions = random.integers(0, spec.actions.size, n).tolist()
    values = random.integers(0, 2, n).astype(np.float64)
    best = 0.0
    for _ in range(3):
        posterior = of.prior()
        began = time.perf_counter()
        for at in range(0, n, FOLD_ROWS):
            part = slice(at, at + FOLD_ROWS)
            rows = rows_of(logged[part])
            of.learn(posterior, rows, actions[part], values[part], seq=min(at + FOLD_ROWS, n))
        best = max(best, n / (time.perf_counter() - began))
    return Line("fold, 3 factors x 12 features", best, None, 100_000.0, 100_000.0)


def show(lines: list[Line]) -> dict[str, Any]:
    """Print the lines; give the rates by what was measured."""
    for line in lines:
        ratio = "" if line.empty is None else f", {line.rate / line.empty:.3f} of an empty handler"
        verdict = "reached" if line.rate >= line.must else "MISSED"
        aim = "" if line.aim == line.must else f", aim {line.aim:.0f}"
        busy = f", core {line.busy:.0%} busy" if line.empty is not None else ""
        print(
            f"  {line.what}: {line.rate:.0f}/s{ratio}{busy}   goal {line.must:.0f}: {verdict}{aim}"
        )
    return {line.what: round(line.rate) for line in lines}
