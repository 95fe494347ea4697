"""``banditctl status`` shows what the server knows, and ends with 1 when it is not ready."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bandit.errors import UnavailableError
from server.commands import app, show
from tests.server.harness import Peer, eventually
from tests.server.scrape import page


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(show.console, "width", 160)


def run(peer: Peer, *arguments: str, with_metrics: bool = True) -> tuple[int, str]:
    assert peer.server.endpoint is not None
    told = ["status", "--address", f"127.0.0.1:{peer.server.port}", *arguments]
    if with_metrics:
        told += ["--metrics", f"127.0.0.1:{peer.server.endpoint.port}", "--seconds", "0.1"]
    with show.console.capture() as shown:
        done = CliRunner().invoke(app, told)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, shown.get() + done.output


def test_a_server_on_one_screen(tmp_path: Path):
    with Peer(tmp_path, metrics_port=0) as peer:
        name = peer.create("shown")
        peer.decide(name, "r1")
        peer.create("asleep", start=False)
        code, text = run(peer)
        assert code == 0
        assert re.search(r"ready\W+yes", text)
        for word in ("calls/s", "decisions/s", "rewards/s", "shed/s", "jobs waiting", "memory"):
            assert word in text
        assert re.search(r"shown\W+running\W+0\W", text)
        assert re.search(r"asleep\W+draft\W+0\W", text)
        code, text = run(peer, with_metrics=False)
        assert code == 0
        assert "--metrics-port" in text
        assert "shown" in text


def test_a_server_that_is_not_ready(tmp_path: Path):
    with Peer(tmp_path, metrics_port=0) as peer:
        (tmp_path / "bandit.db").rename(tmp_path / "away.db")
        eventually(lambda: page(peer, "/readyz").status == 503 and run(peer)[0] == 1)
        code, text = run(peer)
        assert code == 1
        assert re.search(r"ready\W+NO", text)
        assert "was removed or replaced" in " ".join(text.split())
        (tmp_path / "away.db").rename(tmp_path / "bandit.db")


def test_metrics_that_are_not_there(tmp_path: Path):
    with Peer(tmp_path, metrics_port=0) as peer, pytest.raises(UnavailableError) as caught:
        run(peer, "--metrics", "127.0.0.1:1", with_metrics=False)
    assert caught.value.field == "metrics"
    assert "--metrics-port" in caught.value.message
