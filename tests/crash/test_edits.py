"""A server that ends in the middle of an edit, under load: the edit is whole, or was never made."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bandit.errors import BanditError
from server.app import Server
from server.client import BanditClient
from server.settings import Settings
from tests.crash.backends import BACKENDS, Backend, Served
from tests.crash.checking import check, retry
from tests.crash.crowd import CLIENTS, SPEC, Crowd, Journal
from tests.crash.launcher import EDIT_POINTS
from tests.crash.rounds import begin, read

COUNTS = {"amid_edit": 4, "after_edit": 9, "before_edit_answer": 3}
WHY = {"reason": "a test of crashes", "override": "a test of crashes"}


CASES = [*(("sqlite", point) for point in EDIT_POINTS), ("postgresql", "after_edit")]


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made = BACKENDS[request.param](tmp_path)
    yield made
    made.close()


def edit(client: BanditClient, i: int) -> int:
    """Make an edit; give the number of its revision."""
    level = f"added {i}"
    asked = {"request_id": f"edit {i}", **WHY}
    return client.add_level(SPEC.name, "variant", level, **asked).revision.number


@pytest.mark.parametrize(("backend", "point"), CASES, indirect=["backend"])
def test_an_edit_is_whole_or_was_never_made(backend: Backend, tmp_path: Path, point: str):
    module = ("tests.crash.launcher", point, str(COUNTS[point]))
    server = Served(backend, tmp_path / "server.log", module=module)
    begin(server.address)
    journals = [Journal(tmp_path / f"journal-{k}") for k in range(CLIENTS)]
    crowd = Crowd(server.address, journals, patience=1, goes_on=True)
    told: list[int] = []
    try:
        with BanditClient(server.address, timeout=1.5) as client:
            for i in range(20):
                told += [edit(client, i)]
    except BanditError:
        assert server.wait() == -signal.SIGKILL
    finally:
        crowd.leave()
    assert 0 < len(told) < 20
    assert told == list(range(2, len(told) + 2))
    with backend.still() as url:
        found = check(url, backend.secret, read(journals))
    assert found.is_kept, found
    assert found.acknowledged > 0

    again = Server(Settings(database=backend.url, secret_file=backend.secret, port=0))
    again.start()
    try:
        address = f"127.0.0.1:{again.port}"
        with BanditClient(address, timeout=20.0) as client:
            assert [edit(client, i) for i in range(len(told) + 2)] == list(range(2, len(told) + 4))
            levels = client.get_experiment(SPEC.name).spec.actions.variants
            added = [one.name for one in levels if one.generation]
            assert added == [f"added {i}" for i in range(len(told) + 2)]
            entries = client.audit_entries(experiment=SPEC.name)
            assert sum(e.action == "experiment.add_level" for e in entries) == len(added)
        assert retry(address, read(journals)) == []
    finally:
        again.stop()
        for journal in journals:
            journal.close()
    with backend.still() as url:
        found = check(url, backend.secret, read(journals))
    assert found.is_kept, found
