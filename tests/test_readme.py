"""The README does what it says to a new user, and the documents are complete, linked and true."""

import contextlib
import dataclasses
import doctest
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from pydantic import TypeAdapter

from bandit import spec_file
from bandit.decision import Group, Reason
from bandit.spec import ExperimentSpec
from server import commands, parquet, schema, status
from server.catalogue import State

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CLIENT = ROOT / "docs/reference/client.md"
CALL_CENTRE = ROOT / "docs/how-to/call-centre.md"
EDITS = ROOT / "docs/how-to/change-a-running-experiment.md"
DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *DOCUMENTS]
DECLARED_PORT = "50051"
ANNOUNCEMENT = "serving on "
PATIENCE = 240.0
"""Seconds that the server may take to start: with an empty cache it compiles its kernels."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


class Block(NamedTuple):
    """A fenced block, and the comment in the line before it."""

    mark: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    fenced = r"(?:^<!-- (?P<mark>[^>]*?) -->\n+)?^```(?P<language>\w+)\n(?P<text>.*?)^```$"
    found = re.finditer(fenced, page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(m["mark"] or "", m["language"], m["text"]) for m in found]


def table_cells(page: Path) -> list[list[list[str]]]:
    """Give the tables of a page: rows of cells, without the heading."""
    tables = re.findall(r"(?:^\|.*\|\n)+", page.read_text(), re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line)[1:-1] for line in t.splitlines()] for t in tables]
    return [[[cell.strip() for cell in row] for row in table[2:]] for table in rows]


def named(cell: str) -> list[str]:
    """Give what stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


# --- the quick start --------------------------------------------------------------------


class NewUser:
    """Types what the README says into a shell, in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = ""
        self.server: subprocess.Popen[str] | None = None
        tools = folder.parent / "tools"
        tools.mkdir()
        command = tools / "banditctl"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m server "$@"\n')
        command.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BANDIT_")}
        self.environment = {
            **kept,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), str(tools), kept["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
        }

    def follow(self, block: Block) -> None:
        """Do what one block says."""
        if block.mark.startswith("file: "):
            (self.folder / block.mark.removeprefix("file: ")).write_text(block.text)
        elif block.language == "python":
            script = self.folder.parent / "script.py"
            script.write_text(self.here(block.text))
            self.run([sys.executable, str(script)], block.text)
        else:
            for line in block.text.splitlines():
                if line.endswith("&"):
                    self.start(line.removesuffix("&"))
                elif line and not line.startswith("#"):
                    self.run(["/bin/sh", "-c", self.here(line)], line)

    def here(self, text: str) -> str:
        """Put the server's port in place of the declared one."""
        return text.replace(DECLARED_PORT, self.port) if self.port else text

    def run(self, command: list[str], told: str) -> None:
        """Run to the end: status 0, and something to read."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{told}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), f"{told}\nprinted nothing"

    def start(self, line: str) -> None:
        """Start a server on a free port, and wait until it says where."""
        command = shlex.split(line.replace(DECLARED_PORT, "0"))
        errors = self.folder.parent / "server.log"
        with errors.open("w") as log:
            self.server = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.server.stdout is not None
        watchdog = threading.Timer(PATIENCE, self.server.kill)
        watchdog.start()
        said = self.server.stdout.readline()
        watchdog.cancel()
        assert said.startswith(ANNOUNCEMENT), errors.read_text()
        address = said.removeprefix(ANNOUNCEMENT).strip()
        self.port = address.rpartition(":")[2]
        self.environment["BANDIT_ADDRESS"] = address

    def stop(self) -> int | None:
        """Stop the server as an operator would; give its exit status, None if none runs."""
        if self.server is None:
            return None
        self.server.send_signal(signal.SIGTERM)
        watchdog = threading.Timer(30.0, self.server.kill)
        watchdog.start()
        ended = self.server.wait()
        watchdog.cancel()
        if self.server.stdout is not None:
            self.server.stdout.close()
        self.server = None
        return ended


@pytest.fixture
def user(tmp_path: Path) -> Iterator[NewUser]:
    folder = tmp_path / "empty"
    folder.mkdir()
    someone = NewUser(folder)
    yield someone
    someone.stop()


@pytest.mark.timeout(1_200)  # the first of its kind compiles the simulation, too
def test_the_quick_start_works(user: NewUser):
    told = blocks(README)
    before = [b for b in told if b.mark == "run" or b.mark.startswith("file: ")]
    after = [b for b in told if b.mark == "run after stop"]
    assert {b.language for b in before} == {"toml", "sh", "python"}
    assert after
    for block in before:
        user.follow(block)
    for page in (CLIENT, CALL_CENTRE, EDITS):  # they go on where the README ends
        for block in blocks(page):
            if block.mark == "run":
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(user.here(block.text), str(page), "exec"), {})  # noqa: S102
                assert printed.getvalue().strip(), block.text
    assert user.stop() == 0
    for block in after:
        user.follow(block)


def test_two_commands_do_everything():
    commanded = [b.text.split() for b in blocks(README) if b.text.startswith("make")]
    assert commanded == [["make", "demo"], ["make", "test"]]


@each_page
def test_make_has_the_targets_that_are_named(page: Path):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make (\w+)`", page.read_text())) <= targets


# --- links and examples -----------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Give the anchors of a page's headings, made the way that forges make them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@each_page
def test_every_relative_link_leads_somewhere(page: Path):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_that_a_document_names_exists(page: Path):
    folders = "bandit|server|sims|proto|tests|benchmarks|docs"
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text()):
        assert (ROOT / name).exists(), name


def test_every_document_is_in_the_index():
    index = ROOT / "docs/README.md"
    linked = {index.parent / link for link in re.findall(r"\]\(([\w/.-]+)\)", index.read_text())}
    assert set(DOCUMENTS) - {index} <= linked


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_examples_give_what_is_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestParser().get_doctest(page.read_text(), {}, page.name, str(page), 0)
    differences: list[str] = []
    doctest.DocTestRunner(verbose=False).run(examples, out=differences.append)
    assert not differences, "".join(differences)


@each_page
def test_python_that_is_shown_is_python(page: Path):
    for block in blocks(page):
        if block.language == "python" and ">>>" not in block.text:
            compile(block.text, str(page), "exec")


def test_specifications_that_are_shown_are_accepted():
    shown = [b for b in blocks(ROOT / "docs/reference/specification.md") if b.mark == "spec"]
    assert {b.language for b in shown} == {"toml", "yaml"}
    for block in shown:
        spec_file.parse(block.text, block.language)


def test_a_decision_record_has_four_parts():
    for page in sorted((ROOT / "docs/decisions").glob("*.md")):
        parts = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
        assert parts == ["Requirement", "Choice", "Rejected", "Consequence"], page.name
        assert page.read_text().startswith(f"# {page.name[:4]}: "), page.name


# --- completeness -----------------------------------------------------------------------


def parts_of(kind: type) -> set[type]:
    """Give a dataclass and all those in its fields."""
    found = {kind}
    for hint in typing.get_type_hints(kind).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part) and part not in found:
                found |= parts_of(typing.cast("type", part))
    return found


def declared(kind: type) -> dict[str, str]:
    """Give the default of every field of a dataclass, in the words of the reference."""
    hints = typing.get_type_hints(kind)
    defaults: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = {}
        elif field.default is dataclasses.MISSING:
            defaults[field.name] = "(required)"
        elif field.default is None:
            defaults[field.name] = "(none)"
        else:
            written = TypeAdapter(hints[field.name]).dump_python(
                field.default, mode="json", exclude_none=True, exclude_defaults=True
            )
            defaults[field.name] = written
    return defaults


def documented(table: list[list[str]]) -> dict[str, Any]:
    """Read a table of fields: name, type, default, meaning."""
    found: dict[str, Any] = {}
    for name, _, default, _ in table:
        value = named(default)
        written = tomllib.loads(f"v = {value[0]}")["v"] if value else f"({default})"
        found[named(name)[0]] = written
    return found


@pytest.mark.parametrize("kind", sorted(parts_of(ExperimentSpec), key=lambda k: k.__name__))
def test_every_field_of_a_specification_is_documented_with_its_default(kind: type):
    tables = table_cells(ROOT / "docs/reference/specification.md")
    told = [documented(t) for t in tables if all(len(row) == 4 for row in t)]
    assert declared(kind) in told


def test_every_status_is_documented():
    rows = [row for t in table_cells(ROOT / "docs/reference/errors.md") for row in t]
    told = {(named(row[0])[0], named(row[1])[0]) for row in rows if len(row) == 4}
    real = {(code.name, reason) for code, reason in status.STATUS.values()}
    assert told == real | {("INTERNAL", "INTERNAL")}


def test_every_command_and_option_is_documented():
    sections = re.split(r"^## ", (ROOT / "docs/reference/cli.md").read_text(), flags=re.MULTILINE)
    told = {section.partition("\n")[0]: section for section in sections}
    for command in typer.main.get_command(commands.app).commands.values():
        section = told[f"banditctl {command.name}"]
        for part in getattr(command, "commands", {"": command}).values():
            if part is not command:
                assert f"`banditctl {command.name} {part.name}" in section
            for option in part.params:
                for name in (*option.opts, *option.secondary_opts):
                    assert f"`{name}`" in section or not name.startswith("-"), name


def test_every_column_is_documented():
    page = ROOT / "docs/reference/log-format.md"
    told = {name for t in table_cells(page) for row in t for name in named(row[0])}
    told |= set(named(page.read_text()))
    for table in schema.metadata.tables.values():
        assert {table.name, *table.columns.keys()} <= told, table.name
    assert set(parquet.schema(()).names) <= told


def test_every_group_state_and_reason_is_documented():
    words = (ROOT / "docs/reference/words.md").read_text()
    for member in (*Group, *State):
        assert f"`{member.name.lower()}`" in words
    log = (ROOT / "docs/reference/log-format.md").read_text()
    for number in (*Group, *State, *Reason):
        assert f"{int(number)} {number.name.lower()}" in log
