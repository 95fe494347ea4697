"""banditctl tokens and audit-log, beside a server that runs in a process of its own."""

import io
import os
import re
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import OperationalError

from server import turn
from server.client import Ask, BanditClient
from server.commands import run, show
from server.commands.local import LocalServer
from server.database import Database
from server.tls import Security
from server.turn import Turn, beside
from tests.server.harness import eventually
from tests.server.test_commands import WELCOME, banditctl


class Ended(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Guarded:
    """A server process that asks for tokens."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = LocalServer(folder)

    def run(self, *arguments: str, token: str = "") -> Ended:
        """Run a command in this process, which is another one than the server's."""
        environment = {
            "BANDIT_ADDRESS": self.server.address,
            "BANDIT_DATABASE": self.server.database,
            "BANDIT_TOKEN": token,
        }
        out, err = io.StringIO(), io.StringIO()
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch.object(sys, "argv", ["banditctl", *arguments]),
            mock.patch.object(show.console, "_width", 200),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            try:
                status = run()
            except SystemExit as end:
                status = int(end.code or 0)
        return Ended(status, out.getvalue(), err.getvalue())

    def token(self, *arguments: str) -> str:
        made = self.run("tokens", "create", *arguments)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    os.environ["BANDIT_AUTH"] = "tokens"
    try:
        made = Guarded(folder)
    finally:
        del os.environ["BANDIT_AUTH"]
    yield made
    assert made.server.stop() == 0
    assert banditctl(folder, "verify").returncode == 0


def test_a_token_from_its_making_to_its_end(guarded: Guarded):
    (guarded.folder / "welcome.toml").write_text(WELCOME)
    nobody = guarded.run("experiments", "list")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.startswith("error: needs a token in force")

    admin = guarded.token("chief", "--role", "admin", "--reason", "first")
    assert re.fullmatch(r"bandit_[\w-]{43}", admin)

    create = (
        "experiments",
        "create",
        str(guarded.folder / "welcome.toml"),
        "--start",
        "--override",
        "a try",
    )

    def created() -> bool:
        return guarded.run(*create, token=admin).returncode == 0

    eventually(created, 60)
    paused = ("experiments", "pause", "welcome", "--reason", "a test")
    assert guarded.run(*paused, token=admin).returncode == 0

    told = guarded.run("audit-log", token=admin).stdout
    assert re.findall(r"(token\.create|experiment\.\w+)", told) == [
        "experiment.pause",
        "experiment.start",
        "experiment.override",
        "experiment.create",
        "token.create",
    ]
    assert "a test" in told
    assert "chief" in told
    lines = guarded.run("audit-log", "--json", "--experiment", "welcome", token=admin).stdout
    assert len(lines.splitlines()) == 4

    shown = guarded.run("tokens", "list").stdout
    assert "chief" in shown
    assert "in force" in shown
    assert admin not in shown

    revoked = guarded.run("tokens", "revoke", "1", "--reason", "left")
    assert revoked.stdout == "token 1 is revoked\n"
    eventually(lambda: guarded.run("experiments", "list", token=admin).returncode == 1, 60)
    assert "revoked" in guarded.run("tokens", "list").stdout
    assert guarded.run("tokens", "revoke", "1").stdout.endswith("was so before\n")
    log = (guarded.folder / "server.log").read_text()
    assert admin not in log


def test_tokens_are_made_while_the_server_writes(guarded: Guarded):
    """Two processes write one SQLite file; nothing is lost and nothing is damaged."""
    admin = guarded.token("busy", "--role", "admin")
    url = make_url(guarded.server.database)
    security = Security(token=admin)
    stop = threading.Event()
    answered: list[str] = []

    def decide() -> None:
        with BanditClient(guarded.server.address, timeout=60, security=security) as client:
            while not stop.is_set():
                asks = [Ask(customer_id=f"c{i}", context={"age": 41}) for i in range(20)]
                answered.extend(a.decision_id for a in client.decide_batch("busy", asks))

    (guarded.folder / "busy.toml").write_text(WELCOME.replace('"welcome"', '"busy"', 1))
    create = (
        "experiments",
        "create",
        str(guarded.folder / "busy.toml"),
        "--start",
        "--override",
        "a try",
    )
    eventually(lambda: guarded.run(*create, token=admin).returncode == 0, 60)
    deciding = threading.Thread(target=decide)
    deciding.start()
    try:
        for i in range(40):
            with beside(url) as connection:
                connection.exec_driver_sql(
                    "insert into facts (name, value) values (?, ?)", (f"beside {i}", "x" * 9_000)
                )
    finally:
        stop.set()
        deciding.join()
    with sqlite3.connect(url.database or "") as connection:
        found = connection.execute("select hex(decision_id) from decisions").fetchall()
        facts = connection.execute("select count(*) from facts where name like 'beside %'")
        assert facts.fetchone() == (40,)
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
    stored = {one for (one,) in found}
    assert {one.replace("-", "").upper() for one in answered} <= stored


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "x"), "Missing option '--role'"),
        (("create", "x", "--role", "king"), "Invalid value for '--role'"),
        (("create", "", "--role", "read"), "error: name: needs 1 to 64 printable characters"),
        (("create", "x", "--role", "read", "--tenant", "\n"), "error: tenant: needs 1 to 64"),
        (("revoke", "999"), "error: id: no token 999; 'banditctl tokens list' shows them"),
    ],
)
def test_what_can_not_be_done_is_told(guarded: Guarded, arguments: tuple[str, ...], told: str):
    done = guarded.run("tokens", *arguments)
    assert done.returncode in (1, 2)
    assert told in done.stderr


def test_tokens_need_a_database(tmp_path: Path):
    done = banditctl(tmp_path, "tokens", "create", "x", "--role", "read")
    assert done.returncode == 1
    assert done.stderr.startswith("error: database: there is no database")
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_made_without_a_server(tmp_path: Path):
    Database(f"sqlite:///{tmp_path / 'bandit.db'}").close()
    days = ("--expires", "0.5", "--role", "decide", "--role", "report")
    done = banditctl(tmp_path, "tokens", "create", "mailer", *days)
    assert done.returncode == 0, done.stderr
    listed = banditctl(tmp_path, "tokens", "list").stdout
    assert "decide,report" in listed
    assert banditctl(tmp_path, "tokens", "list", "--tenant", "other").stdout.count("mailer") == 0


# --- turns ------------------------------------------------------------------------------


def test_one_at_a_time_has_the_turn(tmp_path: Path):
    url = make_url(f"sqlite:///{tmp_path / 'bandit.db'}")
    first, second = Turn(url), Turn(url)
    order: list[str] = []
    has_begun = threading.Event()

    def follow() -> None:
        has_begun.set()
        with second.taken():
            order.append("second")

    with first.taken():
        thread = threading.Thread(target=follow)
        thread.start()
        assert has_begun.wait(10)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    first.close()
    second.close()


def test_who_waits_too_long_for_the_turn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turn, "PATIENCE", 0.05)
    url = make_url(f"sqlite:///{tmp_path / 'bandit.db'}")
    first, second = Turn(url), Turn(url)
    with first.taken(), pytest.raises(OperationalError, match="keeps the turn"), second.taken():
        pass
    with second.taken():  # given back
        pass
    first.close()
    second.close()
