"""The command line answers at once, cuts nothing off, and says what is wrong with a server."""

import io
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import grpc
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bandit.errors import UnavailableError
from server import client
from server.commands import COMMANDS, app, show, validate, verdicts
from server.commands.loading import Entry
from sims import worlds


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_the_help_says_of_a_command_what_it_says_itself(entry: Entry):
    command = entry.load()
    assert command.name == entry.name
    said = " ".join((command.help or "").split("\n\n")[0].split())
    assert said == entry.line


def test_help_and_misspelt_names_import_neither_engine_nor_database():
    code = (
        "import sys; from typer.testing import CliRunner; from server.commands import app\n"
        "told = [CliRunner().invoke(app, a) for a in (['--help'], ['--version'], ['serv'])]\n"
        "assert [t.exit_code for t in told] == [0, 0, 2], told\n"
        "assert \"Did you mean 'serve'?\" in told[2].stderr\n"
        "print(sorted({'numpy', 'numba', 'sqlalchemy', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_nothing_is_cut_off_where_the_terminal_is_narrow():
    made = show.table("Lift", ["against", "95 % interval"])
    made.add_row("a-long-name-of-a-variant", show.interval([-0.639, 1.283], as_percent=True))
    console = Console(width=24, file=io.StringIO())
    console.print(made)
    text = "".join(c for c in console.file.getvalue() if c not in "│┃┏┡└━┳╇─┴┐┓┩┘ \n")
    assert "…" not in text
    assert set("[-63.9,+128.3]%") <= set(text)
    assert show.interval([-0.639, 1.283], as_percent=True) == "[-63.9, +128.3] %"


def test_output_into_a_file_is_wide_and_holds_no_progress_and_no_control_characters():
    code = (
        "from rich.progress import Progress\n"
        "from server.commands import show\n"
        "with Progress(console=show.progress_console) as p: p.add_task('working', total=1)\n"
        "made = show.table('T', ['n' * 60, 'm' * 60])\n"
        "show.console.print(made)"
    )
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept
    )
    assert "working" in done.stderr
    assert "working" not in done.stdout
    assert "m" * 60 in done.stdout
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Tls handshake failed: WRONG_VERSION_NUMBER", "answers, but in plain text"),
        ("Tls handshake failed: CERTIFICATE_VERIFY_FAILED", "of no authority that is trusted"),
        ("last error: UNAVAILABLE: Socket closed", "does it speak TLS"),
        ("Connection refused", "no server answers at"),
    ],
)
def test_a_server_that_speaks_otherwise_is_told_apart_from_none(said: str, told: str):
    error = Mock(grpc.RpcError)
    error.code = lambda: grpc.StatusCode.UNAVAILABLE
    error.details = lambda: said
    error.trailing_metadata = lambda: ()
    found = client._domain_error(error, "127.0.0.1:1")
    assert isinstance(found, UnavailableError)
    assert told in str(found)


def test_validate_looks_for_the_server_before_it_computes(
    monkeypatch: pytest.MonkeyPatch,
):
    examples = Path(worlds.EXAMPLES) / "gate"
    spec = next(examples.glob("pass-*.toml"))
    monkeypatch.setattr(verdicts, "PATIENCE", 0.3)
    monkeypatch.setattr(validate, "_examined", Mock(side_effect=AssertionError("computed")))
    with socket.socket() as bound:  # bound and not listening: refuses
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        found = CliRunner().invoke(app, ["validate", str(spec), "--address", address])
    assert found.exit_code == verdicts.BAD_INPUT
    assert found.stderr.startswith(f"waiting for a server at {address}")
    assert "error: no server answers" in found.stderr
