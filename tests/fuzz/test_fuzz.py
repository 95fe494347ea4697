"""A few thousand inputs of what ``make fuzz`` makes a hundred thousand of; and that it can fail."""

from collections.abc import Iterator

import grpc
import pytest

from bandit import encoding, spec_file
from bandit.errors import CorruptionError, InvalidInputError
from server import convert
from tests.fuzz.decoders import decoders, header_of, with_header
from tests.fuzz.messages import spoil
from tests.fuzz.running import fuzz_decoder, fuzz_requests, run
from tests.fuzz.target import REQUESTS, Found, Target

DECIDE = "bandit.v1.DecisionService/Decide"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with Target(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


def test_whatever_comes_ends_with_a_declared_status(target: Target):
    """Bounds are those of a slow machine; what is out of bounds is out by far."""
    found = run(target, decoders(), 2_500, tell=lambda _: None, examples=6)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "read", "CorruptionError"} <= set(found)
    assert found["INTERNAL"] == found["UNKNOWN"] == 0
    assert found.slowest < 30, found.slowest_what
    assert target.grown() < 500
    assert target.problems() == []


def test_every_request_has_a_handler_and_a_seed(target: Target):
    assert set(target.seeds) == set(REQUESTS)
    for method, seeds in target.seeds.items():
        for seed in seeds:
            assert target.handle(method, seed.SerializeToString()) is not grpc.StatusCode.INTERNAL


def test_handlers_and_the_socket_answer_the_same(target: Target):
    for i in range(36):
        data = spoil(target.seeds[DECIDE][0].SerializeToString(), bytes([i, 0, 3 * i, 7 * i]))
        assert target.handle(DECIDE, data) is target.send(DECIDE, data)


def test_a_bug_behind_a_request_is_found(target: Target, monkeypatch: pytest.MonkeyPatch):
    """A reader that lets one odd value through ends the run."""
    right = convert.text

    def wrong(value: str, field: str, most: int = convert.MAX_ID) -> str:
        if field == "customer_id" and not value:
            raise ZeroDivisionError
        return right(value, field, most)

    monkeypatch.setattr(convert, "text", wrong)
    with pytest.raises(AssertionError, match="INTERNAL"):
        for number in range(50):
            fuzz_requests(target, DECIDE, number, 10, wire=False)


def test_a_bug_in_a_decoder_is_found(monkeypatch: pytest.MonkeyPatch):
    made = decoders()["json file"]
    right = spec_file.from_data

    def wrong(data: dict) -> object:
        return right({**data, "description": str(data["name"])})

    monkeypatch.setattr(spec_file, "from_data", wrong)
    with pytest.raises((KeyError, TypeError)):
        for number in range(50):
            fuzz_decoder(Found(), made, number, 10)


@pytest.mark.parametrize("name", ["seq", "count"])
@pytest.mark.parametrize("value", [None, "1", -1, 2**63, 0.5, True, []])
def test_a_header_that_counts_with_no_number(name: str, value: object):
    """Found by fuzzing: the checksum fits, and a count is none."""
    made = next(iter(decoders().values()))
    data = made.seeds[0]
    assert encoding.digest(with_header(data, header_of(data))) == encoding.digest(data)
    with pytest.raises(CorruptionError):
        made.read(with_header(data, {**header_of(data), name: value}))


def test_seeds_are_read():
    for name, decoder in decoders().items():
        assert decoder.error in (CorruptionError, InvalidInputError)
        for seed in decoder.seeds:
            assert decoder.read(seed) is not None, name
