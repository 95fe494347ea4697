"""A server that ends in the middle of a ranking: all places of it are there, or none."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from bandit.errors import UnavailableError
from server.app import Server
from server.audit import audit
from server.client import Answer, Ask, BanditClient
from server.database import Database
from server.live import Live
from server.schema import decisions
from server.settings import Settings
from tests.crash.backends import Served, Sqlite
from tests.crash.crowd import SPEC, shown

CALLS = replace(
    SPEC, name="calls", outcome=replace(SPEC.outcome, exposure="confirmed", exposure_window=60.0)
)
PLACES = 3


def ask(client: BanditClient, i: int) -> list[Answer]:
    one = Ask(customer_id=f"c{i}", context={"age": 18 + i % 70}, request_id=f"call {i}")
    return client.rank(CALLS.name, one, count=PLACES)


@pytest.mark.parametrize("point", ["after_insert", "before_answer"])
def test_all_places_or_none(tmp_path: Path, point: str):
    """Before the answer it ends at the second place of the twelfth: an answer half made."""
    backend = Sqlite(tmp_path)
    count = 11 * PLACES + 2 if point == "before_answer" else 20
    module = ("tests.crash.launcher", point, str(count))
    server = Served(backend, tmp_path / "server.log", module=module)
    told: list[list[Answer]] = []
    with BanditClient(server.address, timeout=60) as client:
        client.create_experiment(CALLS, request_id="create")
        client.start_experiment(CALLS.name, override="a test of crashes")
    with BanditClient(server.address, timeout=5) as client, pytest.raises(UnavailableError):
        while True:
            told.append(ask(client, len(told)))
    assert server.wait() == -signal.SIGKILL
    assert len(told) > 5

    with backend.still() as url:
        stored = read(url, backend.secret)
    whole = {f"call {i}": PLACES for i in range(len(told) + (point == "before_answer"))}
    assert stored == whole

    settings = Settings(database=backend.url, secret_file=backend.secret, port=0)
    again = Server(settings)
    again.start()
    try:
        with BanditClient(f"127.0.0.1:{again.port}", timeout=60) as client:
            for i, before in enumerate(told):
                answers = ask(client, i)
                assert all(one.is_repeated for one in answers)
                assert [shown(one) for one in answers] == [shown(one) for one in before]
            first, second = (ask(client, len(told)) for _ in range(2))
            assert first[0].is_repeated is (point == "before_answer")
            assert [shown(one) for one in first] == [shown(one) for one in second]
    finally:
        again.stop()


def read(url: str, secret: Path) -> dict[str, int]:
    """Audit a log; give the number of places by the request id of the first."""
    opened = Database(url, read_only=True)
    try:
        live = Live(secret.read_bytes().strip())
        with opened.reader.connect() as connection:
            live.load(connection)
            [one] = live.entries()
            assert audit(connection, one).problems == []
            places: dict[str, int] = {}
            for request in connection.execute(select(decisions.c.request_id)).scalars():
                first = request.partition("#")[0]
                places[first] = places.get(first, 0) + 1
            return places
    finally:
        opened.close()
