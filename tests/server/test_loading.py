"""Help answers at once: it imports no command, and says of each what the command says."""

import subprocess
import sys

import pytest

from server.commands import COMMANDS
from server.commands.loading import Entry


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
