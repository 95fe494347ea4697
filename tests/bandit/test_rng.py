"""Randomness by name: ids that sort, draws that no client can steer, purposes kept apart."""

import hashlib
from uuid import RFC_4122

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bandit import rng

SECRET = b"sixteen bytes or more"
TAIL = 0xFFF << 64 | (1 << 62) - 1
TIMES = st.integers(0, 2**48 - 1)
TEXTS = st.text(max_size=40)


@given(request=TEXTS, at_ms=TIMES)
def test_a_decision_id_is_a_uuid_of_version_7(request: str, at_ms: int):
    one = rng.decision_id(SECRET, "e", request, at_ms)
    assert (one.version, one.variant) == (7, RFC_4122)
    assert one.int >> 80 == at_ms


@given(requests=st.tuples(TEXTS, TEXTS), times=st.tuples(TIMES, TIMES))
def test_ids_sort_by_time(requests: tuple[str, str], times: tuple[int, int]):
    one, two = (rng.decision_id(SECRET, "e", r, t) for r, t in zip(requests, times, strict=True))
    assert times[0] == times[1] or (one < two) == (times[0] < times[1])


@given(request=TEXTS, times=st.tuples(TIMES, TIMES))
def test_the_same_request_gets_the_same_tail_and_draw_whenever(
    request: str, times: tuple[int, int]
):
    one, two = (rng.decision_id(SECRET, "e", request, t) for t in times)
    assert one.int & TAIL == two.int & TAIL
    assert rng.decision_stream(SECRET, "e", one) == rng.decision_stream(SECRET, "e", two)


def test_secret_experiment_and_request_each_name_another_draw():
    ids = [
        rng.decision_id(secret, experiment, request, 0)
        for secret in (SECRET, b"another secret of enough bytes")
        for experiment in ("e", "f")
        for request in ("1", "2", "")
    ]
    assert len(set(ids)) == len(ids)
    streams = [rng.decision_stream(s, e, ids[0]) for s in (SECRET, b"other") for e in ("e", "f")]
    assert len(set(streams)) == len(streams)


def test_one_name_means_something_else_for_every_purpose_and_scope():
    purposes = ("decision", "draw", "bank", "customer", "group")
    names = [(p, s, n) for p in purposes for s in ("a", "ab", "") for n in (b"a", b"ba", b"")]
    assert len({rng.keyed(SECRET, *name) for name in names}) == len(names)


@given(secret=st.binary(max_size=200), name=st.binary(max_size=200))
def test_keyed_is_plain_keyed_blake2b(secret: bytes, name: bytes):
    key = hashlib.sha256(secret).digest()
    plain = hashlib.blake2b(b"purpose\0scope\0" + name, key=key, digest_size=32)
    assert rng.keyed(secret, "purpose", "scope", name) == plain.digest()


def test_logs_of_today_can_be_replayed_for_ever():
    one = rng.decision_id(SECRET, "welcome", "request-1", 1_700_000_000_000)
    assert str(one) == "018bcfe5-6800-7f26-b7b9-95742d36fa01"
    assert rng.decision_stream(SECRET, "welcome", one).hex() == "24ad4548ec36c0255860dcf243804f35"
    assert rng.customer_key(SECRET, "acme", "c1").hex() == "27244a723aa725241515382b2cbe8774"
    assert rng.group_point(SECRET, "welcome", b"c1") == 3597290162
    assert rng.snapshot_stream(SECRET, "welcome", 7).tolist() == [
        821966568,
        1318742722,
        1894391710,
        1738051550,
    ]


@given(customer=st.binary(max_size=40))
def test_a_group_point_is_one_of_2_to_the_32(customer: bytes):
    assert 0 <= rng.group_point(SECRET, "e", customer) < 2**32


def test_every_snapshot_has_its_own_stream():
    streams = {rng.snapshot_stream(SECRET, e, seq).tobytes() for e in "ef" for seq in range(50)}
    assert len(streams) == 100


def test_words_are_little_endian():
    assert rng.words(bytes(range(8))).tolist() == [0x03020100, 0x07060504]
    assert rng.words(b"\0" * 32).dtype == np.uint32
