"""A server that ends at each named point of its work: all of a call is there, or nothing."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.app import Server
from server.settings import Settings
from tests.crash.backends import BACKENDS, Backend, Served
from tests.crash.checking import check, retry, settle
from tests.crash.crowd import CLIENTS, Crowd, Journal
from tests.crash.launcher import POINTS
from tests.crash.rounds import begin, read

COUNTS = dict.fromkeys(POINTS, 30) | {"before_publish": 3}
"""At which crossing the server ends: when there is something to lose."""


@pytest.fixture(params=["sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made = BACKENDS[request.param](tmp_path)
    yield made
    made.close()


@pytest.fixture
def journals(tmp_path: Path) -> Iterator[list[Journal]]:
    made = [Journal(tmp_path / f"journal-{k}") for k in range(CLIENTS)]
    yield made
    for journal in made:
        journal.close()


def launch(backend: Backend, folder: Path, name: str, count: int) -> Served:
    module = ("tests.crash.launcher", name, str(count))
    return Served(backend, folder / "server.log", module=module)


@pytest.mark.parametrize("point", POINTS)
def test_all_or_nothing(backend: Backend, journals: list[Journal], tmp_path: Path, point: str):
    server = launch(backend, tmp_path, point, COUNTS[point])
    begin(server.address)
    crowd = Crowd(server.address, journals, patience=1, goes_on=True)
    try:
        assert server.wait() == -signal.SIGKILL
    finally:
        crowd.leave()
    with backend.still() as url:
        found = check(url, backend.secret, read(journals))
    assert found.is_kept, found
    assert found.acknowledged > 0

    settings = Settings(database=backend.url, secret_file=backend.secret, port=0)
    again = Server(settings)  # the one that people run, in this process
    again.start()
    try:
        address = f"127.0.0.1:{again.port}"
        assert retry(address, read(journals)) == []
        assert settle(address, read(journals)) == []
    finally:
        again.stop()
    with backend.still() as url:
        found = check(url, backend.secret, read(journals))
    assert found.is_kept, found
    assert found.decisions == sum(len(a) for journal in journals for a in journal.attempts)


def test_an_answer_before_its_commit_is_found(
    backend: Backend, journals: list[Journal], tmp_path: Path
):
    """The same checks fail on a server that answers first and commits afterwards."""
    server = launch(backend, tmp_path, "answer_first", 30)
    begin(server.address)
    crowd = Crowd(server.address, journals, patience=2)
    crowd.join()  # it answers no more
    server.kill()
    with backend.still() as url:
        found = check(url, backend.secret, read(journals))
    assert found.lost
    assert not found.is_kept
