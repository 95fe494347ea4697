"""Ten times more callers than the server takes; ``make crash`` asks for the full 80 %."""

from pathlib import Path

import grpc
import pytest

from benchmarks.overload import measure
from server import convert
from server.pb import bandit_pb2 as pb
from tests.crash.backends import Served, Sqlite
from tests.crash.checking import check
from tests.crash.crowd import SPEC
from tests.crash.rounds import begin

LIMIT = 16


def test_many_too_many_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The rest is turned away with a time to come again, and nothing grows.

    The share is generous: peak and overload take turns, but others use this machine, too.
    """
    monkeypatch.setenv("BANDIT_IN_FLIGHT", str(LIMIT))
    backend = Sqlite(tmp_path)
    with Served(backend, tmp_path / "server.log") as server:
        begin(server.address)
        template = pb.DecideRequest(
            experiment=SPEC.name, customer_id="c", context=convert.context_message({"age": 41})
        )
        found = measure(server.address, server.pid, template, limit=LIMIT, rounds=2, seconds=1.5)
    assert set(found.codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert found.unasked == 0
    assert found.ratio > 0.4
    assert found.grown < 64
    with backend.still() as url:
        kept = check(url, backend.secret, [], again=False)
    assert kept.is_kept
    assert kept.decisions == found.decided
