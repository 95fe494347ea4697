"""Databases and servers for the tests of this folder.

The modules in ``ON_BOTH`` are the contract of storage: all that asks for ``store`` there, in
person or through ``peer`` and ``still``, runs on SQLite and on PostgreSQL.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.server.harness import Clock, Peer, Store

ON_BOTH = {
    "test_gate",
    "test_learner",
    "test_lifecycle",
    "test_model",
    "test_ranking",
    "test_reporting",
    "test_retention",
    "test_revised_histories",
    "test_revising",
    "test_service",
    "test_storage",
    "test_writer",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the contract on both databases, and all else on SQLite."""
    if "store" in metafunc.fixturenames:
        module = metafunc.module.__name__.rpartition(".")[2]
        kinds = ["sqlite", "postgresql"] if module in ON_BOTH else ["sqlite"]
        metafunc.parametrize("store", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest) -> Store:
    """Give what makes databases of one kind; PostgreSQL's end with its folder."""
    if request.param == "sqlite":
        return lambda folder: f"sqlite:///{folder / 'bandit.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return lambda _: server.fresh()


@pytest.fixture(scope="module")
def peer(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Run a server that learns by itself, for all tests of a module."""
    folder = tmp_path_factory.mktemp("server")
    with Peer(folder, database=store(folder)) as running:
        yield running


@pytest.fixture
def still(store: Store, tmp_path: Path) -> Iterator[Peer]:
    """Run a server whose clock stands still, and that learns when the test says so."""
    with Peer(tmp_path, clock=Clock(), database=store(tmp_path)) as running:
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest, peer: Peer) -> str:
    """Start an experiment on the module's server, of this test's own."""
    made = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return peer.create(made.removeprefix("test_")[:64])
