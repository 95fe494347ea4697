"""Packed batches: the same decisions and rewards as one by one, and every bad column refused."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bandit.context import ContextField, ContextSchema
from server.packed import MAX_ROWS, schema_hash
from server.pb import bandit_pb2 as pb
from tests.server.harness import SPEC, START, Clock, Peer, decide_request, refusal

GROUPS = {"random": 0.3, "baseline": 0.1, "no_contact": 0.1}
BASELINE = {"variant": "long", "channel": "push"}
LEVELS = ("new", "regular")
NAN = float("nan")

floats = st.floats(-1e3, 1e3, width=32) | st.just(NAN)
rows = st.tuples(
    floats,
    st.sampled_from([0.0, -0.0, 1.0, -1.0, NAN]),
    st.sampled_from([0.0, -0.0, 1.0, NAN]),
    floats,
)


def packed_request(name: str, tag: str, values: list[Any], **fields: object) -> pb.PackedContexts:
    matrix = np.array(values, dtype="<f4").reshape(len(values), -1)
    given: dict[str, object] = {
        "experiment": name,
        "request_prefix": tag,
        "first_number": 1,
        "customer_ids": [f"customer of {tag}-{i:06d}" for i in range(1, len(values) + 1)],
        "rows": matrix.tobytes(),
        "columns": matrix.shape[1],
    }
    return pb.PackedContexts(**{**given, **fields})  # type: ignore[arg-type]


def decide(peer: Peer, asked: pb.PackedContexts) -> pb.PackedDecisions:
    return peer.decisions.BatchDecide(pb.BatchDecideRequest(packed=asked)).packed


def columns(found: pb.PackedDecisions) -> list[tuple[Any, ...]]:
    """Give what a decision says, row by row, as ``told`` gives it of a named one."""
    ids = [found.decision_ids[at : at + 16] for at in range(0, len(found.decision_ids), 16)]
    kinds = [
        (found.actions, "<i4"),
        (found.propensities, "<f8"),
        (found.groups, "u1"),
        (found.reasons, "u1"),
        (found.sequences, "<i8"),
        (found.snapshot_versions, "<i8"),
        (found.decided_at, "<i8"),
        (found.send_at, "<i8"),
    ]
    numbers = [np.frombuffer(data, dtype=kind).tolist() for data, kind in kinds]
    return list(zip(ids, *numbers, strict=True))


def told(one: pb.Decision) -> tuple[Any, ...]:
    sends = one.HasField("action")
    return (
        bytes.fromhex(one.decision_id.replace("-", "")),
        one.action.index if sends else -1,
        one.propensity,
        one.group,
        one.reason,
        one.sequence,
        one.snapshot_version,
        one.decided_at.ToMicroseconds(),
        one.action.send_at.ToMicroseconds() if sends else 0,
    )


def named(row: tuple[float, ...]) -> dict[str, dict[str, object]]:
    """Write a row as named values, as a caller of Decide would."""
    age, segment, has_app, hour = (float(np.float32(x)) for x in row)
    values: dict[str, dict[str, object]] = {"age": {"number": age}, "hour": {"number": hour}}
    if segment == segment:
        values["segment"] = {"category": LEVELS[int(segment)] if segment >= 0 else "never heard"}
    if has_app == has_app:
        values["has_app"] = {"flag": has_app == 1.0}
    return {k: v for k, v in values.items() if v.get("number", 0.0) == v.get("number", 0.0)}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Run a server whose clock stands still, with a slot, a zone, and every group in use."""
    folder: Path = tmp_path_factory.mktemp("packed")
    with Peer(folder, clock=Clock()) as running:
        running.create(
            "twin",
            groups=GROUPS,
            baseline=BASELINE | {"slot": "noon"},
            fallback=BASELINE | {"slot": "noon"},
            actions={**SPEC["actions"], "slots": [{"name": "noon", "time": "12:00"}]},
        )
        yield running


counter = iter(range(10**9))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(rows, min_size=1, max_size=30),
    st.sampled_from([0, 1]),
    st.sampled_from(["", "Europe/Berlin"]),
    st.data(),
)
def test_a_packed_row_is_decided_as_decide_decides_it(
    twin: Peer, values: list[tuple[float, ...]], keeps: int, zone: str, data: st.DataObject
) -> None:
    tag = f"p{next(counter)}"
    first = data.draw(st.sets(st.integers(0, len(values) - 1)))

    def one(i: int) -> pb.Decision:
        return twin.decide(
            "twin",
            f"{tag}-{i + 1:06d}",
            context={"values": named(values[i])},
            include_propensities=bool(keeps),
            time_zone=zone,
        )

    singles = {i: one(i) for i in first}  # these are known when the packed batch comes
    asked = packed_request("twin", tag, values, include_propensities=bool(keeps), time_zone=zone)
    found = decide(twin, asked)
    repeats = [bool(flag) for flag in found.repeated_requests]
    assert repeats == [i in first for i in range(len(values))]
    p = np.frombuffer(found.all_propensities, dtype="<f8").reshape(len(values), -1)
    assert p.shape[1] == (4 if keeps else 0)
    for i, row in enumerate(columns(found)):
        after = one(i)
        assert after.repeated_request
        assert row == told(after)
        assert i not in singles or row == told(singles[i])
        assert [x.propensity for x in after.propensities] == p[i].tolist()
    assert columns(decide(twin, asked)) == columns(found)


def test_the_order_of_who_comes_first_does_not_change_what_is_decided(tmp_path: Path) -> None:
    """The same request, new in both ways on two servers of one secret, is decided alike."""
    values = [(20.0 + i, i % 3 - 1.0, i % 2, i / 3) for i in range(200)]
    found = []
    for folder, is_packed in ((tmp_path / "a", True), (tmp_path / "b", False)):
        folder.mkdir()
        (folder / "bandit.db.secret").write_text("s" * 64)
        with Peer(folder, clock=Clock(START)) as peer:
            peer.create("alike", groups=GROUPS, baseline=BASELINE)
            if is_packed:
                found.append(columns(decide(peer, packed_request("alike", "t", values))))
            else:
                asked = [
                    decide_request("alike", f"t-{i:06d}", context={"values": named(row)})
                    for i, row in enumerate(values, 1)
                ]
                request = pb.BatchDecideRequest(requests=asked)
                found.append([told(d) for d in peer.decisions.BatchDecide(request).decisions])
    assert found[0] == found[1]
    assert {row[3] for row in found[0]} == {1, 2, 3, 4}, "every group is in it"


def test_names_of_actions_come_once(twin: Peer) -> None:
    found = decide(twin, packed_request("twin", "names", [(41, 0, 1, 3)] * 50))
    indices = set(np.frombuffer(found.actions, dtype="<i4").tolist()) - {-1}
    assert {action.index for action in found.used_actions} == indices
    assert all(a.variant and a.channel and a.slot == "noon" for a in found.used_actions)


def test_a_request_id_twice_in_a_packed_batch_gets_one_decision(twin: Peer) -> None:
    before = twin.log_length("twin")
    asked = packed_request("twin", "", [(41, 0, 1, 3)] * 2, first_number=0)
    asked.request_ids[:] = ["same", "same"]
    asked.customer_ids[:] = ["c", "c"]
    one, two = columns(decide(twin, asked))
    assert one == two
    assert twin.log_length("twin") == before + 1


def test_a_reused_id_with_other_content_refuses_the_whole_packed_batch(twin: Peer) -> None:
    twin.decide("twin", "reused-000002")
    before = twin.log_length("twin")
    found = refusal(decide, twin, packed_request("twin", "reused", [(41, 0, 1, 3)] * 3))
    assert (found.code, found.field) == (grpc.StatusCode.ALREADY_EXISTS, "packed.request_ids")
    assert "'reused-000002'" in found.message
    assert twin.log_length("twin") == before


def test_ten_thousand_rows_are_one_batch(twin: Peer) -> None:
    values = [(30.0 + i % 40, i % 2, 1.0, 5.0) for i in range(MAX_ROWS)]
    before = twin.log_length("twin")
    found = decide(twin, packed_request("twin", "many", values))
    sequences = np.frombuffer(found.sequences, dtype="<i8")
    assert sequences.tolist() == list(range(before + 1, before + 1 + MAX_ROWS))
    again = decide(twin, packed_request("twin", "many", values))
    assert columns(again) == columns(found)
    assert set(again.repeated_requests) == {1}


def test_a_paused_experiment_answers_the_fallback_and_an_archived_one_repeats(still: Peer) -> None:
    name = still.create("resting")
    first = decide(still, packed_request(name, "a", [(41, 0, 1, 3)] * 3))
    still.experiments.PauseExperiment(pb.PauseExperimentRequest(name=name))
    paused = decide(still, packed_request(name, "b", [(41, 0, 1, 3)] * 3))
    assert set(paused.reasons) == {pb.REASON_PAUSED}
    still.experiments.ArchiveExperiment(pb.ArchiveExperimentRequest(name=name))
    again = decide(still, packed_request(name, "a", [(41, 0, 1, 3)] * 3))
    assert columns(again) == columns(first)
    found = refusal(decide, still, packed_request(name, "c", [(41, 0, 1, 3)] * 3))
    assert found.code is grpc.StatusCode.FAILED_PRECONDITION


def test_an_experiment_without_context_takes_rows_of_nothing(peer: Peer, name: str) -> None:
    plain = peer.create(f"plain-{name}"[:64], context=[])
    asked = packed_request(plain, "n", [()] * 3, rows=b"", columns=0)
    assert len(decide(peer, asked).actions) == 12


def test_a_schema_hash_stands_for_every_part_of_the_schema(twin: Peer) -> None:
    schema = ContextSchema(
        fields=(
            ContextField(name="age", kind="number", bounds=(18.0, 90.0)),
            ContextField(name="segment", kind="category", levels=("new", "regular")),
        )
    )
    others = [
        ContextSchema(fields=schema.fields[::-1]),
        ContextSchema(fields=schema.fields[:1]),
        ContextSchema(
            fields=(
                schema.fields[0],
                ContextField(name="segment", kind="category", levels=("regular", "new")),
            )
        ),
        ContextSchema(
            fields=(ContextField(name="age", kind="number", bounds=(18.0, 91.0)), schema.fields[1])
        ),
    ]
    assert len({schema_hash(s) for s in (schema, *others)}) == 5
    told_hash = decide(twin, packed_request("twin", "h0", [(41, 0, 1, 3)])).schema_hash
    decide(twin, packed_request("twin", "h1", [(41, 0, 1, 3)], schema_hash=told_hash))
    stale = packed_request("twin", "h2", [(41, 0, 1, 3)], schema_hash=b"x" * 16)
    found = refusal(decide, twin, stale)
    assert (found.code, found.field) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "packed.schema_hash",
    )


ROW = (41.0, 0.0, 1.0, 3.0)
BAD: list[tuple[str, Callable[[], dict[str, object]]]] = [
    ("packed.customer_ids", lambda: {"customer_ids": []}),
    ("packed.customer_ids", lambda: {"customer_ids": ["c"] * (MAX_ROWS + 1)}),
    ("packed.customer_ids[1]", lambda: {"customer_ids": ["c", ""]}),
    ("packed.customer_ids[0]", lambda: {"customer_ids": ["c" * 257, "c"]}),
    ("packed.customer_ids[1]", lambda: {"customer_ids": ["c", "a\0b"]}),
    ("packed.columns", lambda: {"columns": 3}),
    ("packed.columns", lambda: {"columns": 2**32 - 1}),
    ("packed.rows", lambda: {"rows": bytes(31)}),
    ("packed.rows", lambda: {"rows": b""}),
    ("packed.request_ids", lambda: {"request_ids": ["a", "b"]}),
    ("packed.request_ids", lambda: {"request_prefix": ""}),
    ("packed.request_ids", lambda: {"request_prefix": "", "request_ids": ["a"]}),
    ("packed.request_ids[0]", lambda: {"request_prefix": "", "request_ids": ["", "b"]}),
    ("packed.request_prefix", lambda: {"request_prefix": "p" * 101}),
    ("packed.request_prefix", lambda: {"request_prefix": "p\0"}),
    ("packed.first_number", lambda: {"first_number": 2**64 - 1}),
    ("packed.time_zone", lambda: {"time_zone": "Mars/Base"}),
    ("packed.experiment", lambda: {"experiment": ""}),
    ('packed.rows[1].values["age"]', lambda: {"rows": _cells(4, float("inf"))}),
    ('packed.rows[1].values["segment"]', lambda: {"rows": _cells(5, 2.0)}),
    ('packed.rows[1].values["segment"]', lambda: {"rows": _cells(5, 0.5)}),
    ('packed.rows[0].values["has_app"]', lambda: {"rows": _cells(2, 2.0)}),
    ('packed.rows[0].values["hour"]', lambda: {"rows": _cells(3, 3e38)}),
]


def _cells(place: int, value: float) -> bytes:
    numbers = [*ROW, *ROW]
    numbers[place] = value
    return struct.pack("<8f", *numbers)


@pytest.mark.parametrize(("field", "change"), BAD)
def test_a_bad_column_is_named_and_nothing_is_stored(
    twin: Peer, field: str, change: Callable[[], dict[str, object]]
) -> None:
    before = twin.log_length("twin")
    found = refusal(decide, twin, packed_request("twin", "bad", [ROW, ROW], **change()))
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert twin.log_length("twin") == before


def test_a_batch_is_named_or_packed_not_both(twin: Peer) -> None:
    both = pb.BatchDecideRequest(
        requests=[decide_request("twin", "both")], packed=packed_request("twin", "both", [ROW])
    )
    found = refusal(twin.decisions.BatchDecide, both)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, "packed")


def test_bounds_and_required_fields_name_their_cell(peer: Peer, name: str) -> None:
    strict = peer.create(
        f"{name}-strict",
        context=[
            {"name": "age", "kind": "number", "bounds": [18, 90], "outside": "reject"},
            {"name": "kind", "kind": "category", "levels": ["a"], "required": True},
        ],
    )
    for values, field in (
        ([(20, 0), (91, 0)], 'packed.rows[1].values["age"]'),
        ([(20, NAN), (20, 0)], 'packed.rows[0].values["kind"]'),
    ):
        found = refusal(decide, peer, packed_request(strict, "s", values))
        assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)


# --- rewards ----------------------------------------------------------------------------


def packed_rewards(name: str, ids: bytes, **fields: object) -> pb.PackedRewards:
    n = len(ids) // 16
    given: dict[str, object] = {
        "experiment": name,
        "event_prefix": "e",
        "first_number": 1,
        "decision_ids": ids,
        "names": ["click", "buy"],
        "kinds": bytes(i % 2 for i in range(n)),
        "values": np.arange(n, dtype="<f8").clip(0, 1).tobytes(),
    }
    return pb.PackedRewards(**{**given, **fields})  # type: ignore[arg-type]


def reward(peer: Peer, facts: pb.PackedRewards) -> pb.PackedRewardResults:
    return peer.decisions.BatchRecordRewards(pb.BatchRecordRewardsRequest(packed=facts)).packed


def test_packed_rewards_are_recorded_as_named_ones_are(still: Peer) -> None:
    name = still.create("paid")
    decided = decide(still, packed_request(name, "r", [ROW] * 5))
    ids = decided.decision_ids[:64] + bytes(16)
    at = np.full(5, START) + np.arange(5) * 1_000_000
    assert still.clock is not None
    still.clock.advance(60)
    facts = packed_rewards(name, ids, occurred_at=at.astype("<i8").tobytes())
    found = reward(still, facts)
    assert list(found.dispositions) == [pb.DISPOSITION_RECORDED] * 4 + [0]
    assert [(e.index, e.error.reason) for e in found.errors] == [(4, "NOT_FOUND")]
    sequences = np.frombuffer(found.sequences, dtype="<i8").tolist()
    for i in range(4):
        one = still.get(name, bytes(ids[16 * i : 16 * i + 16]).hex())
        [event] = one.events
        assert (event.event_id, event.name, event.value) == (
            f"e-{i + 1:06d}",
            ["click", "buy"][i % 2],
            [0.0, 1.0, 1.0, 1.0][i],
        )
        assert event.occurred_at.ToMicroseconds() == at[i]
        assert event.sequence == sequences[i]
    again = reward(still, facts)
    assert list(again.dispositions) == [pb.DISPOSITION_DUPLICATE] * 4 + [0]
    request = pb.RecordRewardRequest(
        experiment=name,
        event_id="e-000001",
        decision_id=bytes(ids[:16]).hex(),
        name="click",
        value=0.0,
    )
    mixed = still.decisions.RecordReward(request)
    assert mixed.disposition == pb.DISPOSITION_DUPLICATE
    assert mixed.sequence == sequences[0]


BAD_REWARDS: list[tuple[str, dict[str, object]]] = [
    ("packed.decision_ids", {"decision_ids": b""}),
    ("packed.decision_ids", {"decision_ids": bytes(33)}),
    ("packed.decision_ids", {"decision_ids": bytes(16 * (MAX_ROWS + 1))}),
    ("packed.names", {"names": []}),
    ("packed.names", {"names": ["click"] * 65}),
    ("packed.names[1]", {"names": ["click", "clack"]}),
    ("packed.kinds", {"kinds": bytes(3)}),
    ("packed.kinds[1]", {"kinds": bytes([0, 2])}),
    ("packed.values", {"values": bytes(8)}),
    ("packed.values[1]", {"values": struct.pack("<2d", 0, 101)}),
    ("packed.values[0]", {"values": struct.pack("<2d", float("nan"), 0)}),
    ("packed.occurred_at", {"occurred_at": bytes(8)}),
    ("packed.occurred_at[1]", {"occurred_at": struct.pack("<2q", 0, -1)}),
    ("packed.occurred_at[0]", {"occurred_at": struct.pack("<2q", START * 2, 0)}),
    ("packed.event_ids", {"event_prefix": ""}),
    ("packed.event_prefix", {"event_prefix": "p" * 101}),
]


@pytest.mark.parametrize(("field", "change"), BAD_REWARDS)
def test_a_bad_column_of_rewards_is_named_and_nothing_is_stored(
    twin: Peer, field: str, change: dict[str, object]
) -> None:
    before = twin.log_length("twin")
    facts = packed_rewards("twin", bytes(32))
    for name, value in change.items():
        facts.ClearField(name)  # type: ignore[arg-type]
        facts.MergeFrom(pb.PackedRewards(**{name: value}))  # type: ignore[arg-type]
    found = refusal(reward, twin, facts)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert twin.log_length("twin") == before
