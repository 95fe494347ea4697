"""Servers for the tests of this folder: one for a module, and one whose clock stands still."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.harness import Clock, Peer


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Run a server that learns by itself, for all tests of a module."""
    with Peer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def still(tmp_path: Path) -> Iterator[Peer]:
    """Run a server whose clock stands still, and that learns when the test says so."""
    with Peer(tmp_path, clock=Clock()) as running:
        yield running


@pytest.fixture
def name(request: pytest.FixtureRequest, peer: Peer) -> str:
    """Start an experiment on the module's server, of this test's own."""
    made = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return peer.create(made.removeprefix("test_")[:64])
