"""Opening a database: migrated, durable, one server at a time, and never an empty start."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text
from sqlalchemy.exc import OperationalError

from bandit.errors import (
    BanditError,
    CorruptionError,
    InvalidInputError,
    StateError,
    UnavailableError,
)
from server.app import Server
from server.database import Database
from server.schema import metadata
from server.settings import Settings


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'bandit.db'}"


@pytest.fixture
def path(url: str) -> Path:
    """Give the file of a database that a server has made."""
    Database(url).close()
    return Path(url.removeprefix("sqlite:///"))


def test_migrations_give_the_declared_schema(url: str):
    database = Database(url)
    with database.writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, metadata)
        uniques = {
            table: {u["name"] for u in inspect(connection).get_unique_constraints(table)}
            for table in metadata.tables
        }
    database.close()
    assert differences == []
    assert uniques["decisions"] == {"uq_decisions_request", "uq_decisions_id"}


def test_the_log_is_stored_by_its_sequence(path: Path):
    with sqlite3.connect(path) as connection:
        written = dict(connection.execute("select name, sql from sqlite_master where type='table'"))
    connection.close()
    assert all("WITHOUT ROWID" in written[t] for t in ("decisions", "reward_events", "outcomes"))


def test_migrating_twice_changes_nothing(path: Path, url: str):
    before = path.read_bytes()
    Database(url).close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_schema_is_refused(path: Path, url: str, read_only: bool):  # noqa: FBT001
    with sqlite3.connect(path) as connection:
        connection.execute("update alembic_version set version_num = '9999'")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(CorruptionError, match=r"9999.*upgrade"):
        Database(url, read_only=read_only)
    assert path.read_bytes() == before


def test_reading_does_not_migrate(tmp_path: Path, url: str):
    (tmp_path / "bandit.db").touch()
    with pytest.raises(StateError, match="start the server once"):
        Database(url, read_only=True)
    assert (tmp_path / "bandit.db").read_bytes() == b""


def test_reading_what_is_not_there_makes_nothing(tmp_path: Path, url: str):
    with pytest.raises(InvalidInputError, match="there is no database"):
        Database(url, read_only=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("content", [b"short", b"this is a shopping list\n" * 100, b"\0" * 4096])
def test_a_file_that_is_no_database(tmp_path: Path, url: str, content: bytes, read_only: bool):  # noqa: FBT001
    (tmp_path / "bandit.db").write_bytes(content)
    with pytest.raises(CorruptionError, match="is no database"):
        Database(url, read_only=read_only)
    assert (tmp_path / "bandit.db").read_bytes() == content


def test_a_truncated_database(path: Path, url: str):
    path.write_bytes(path.read_bytes()[:-5_000])
    with pytest.raises(CorruptionError, match="is no database"):
        Database(url)


def test_a_folder_in_place_of_a_database(tmp_path: Path):
    with pytest.raises(UnavailableError, match="can not be opened"):
        Database(f"sqlite:///{tmp_path}")


def no_folder(tmp_path: Path) -> Path:
    return tmp_path / "missing" / "bandit.db"


def below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / "file" / "bandit.db"


def unwritable(tmp_path: Path) -> Path:  # noqa: ARG001
    return Path("/proc/bandit.db")  # refuses even root


PLACES = [no_folder, below_a_file, unwritable]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_can_not_be_written(tmp_path: Path, place: Callable[[Path], Path]):
    wanted = place(tmp_path)
    with pytest.raises(UnavailableError) as caught:
        Database(f"sqlite:///{wanted}")
    assert caught.value.field == "database"
    assert not wanted.parent.is_dir() or wanted.parent == Path("/proc")


@pytest.mark.parametrize("place", PLACES)
def test_a_server_makes_no_folder(tmp_path: Path, place: Callable[[Path], Path]):
    """A typing error in a path must not become an empty start."""
    secret = tmp_path / "secret"
    secret.write_text("x" * 64)
    wanted = place(tmp_path)
    with pytest.raises(UnavailableError):
        Server(Settings(database=f"sqlite:///{wanted}", port=0, secret_file=secret))
    assert not wanted.exists()


UNUSABLE = ["", "nonsense", "sqlite://", "sqlite:///:memory:", "nosuch://x", "mysql://x/y"]


@pytest.mark.parametrize("wrong", UNUSABLE)
def test_a_url_that_can_not_be_used(wrong: str):
    with pytest.raises(InvalidInputError) as caught:
        Database(wrong)
    assert caught.value.field == "database"


@pytest.mark.parametrize("wrong", UNUSABLE)
def test_a_server_blames_the_url_and_leaves_nothing(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError) as caught:
        Server(Settings(database=wrong, port=0))
    assert caught.value.field == "database"
    assert list(tmp_path.iterdir()) == []


def test_a_memory_database_by_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BanditError):
        Database("sqlite:///file:x?mode=memory&uri=true")


def test_a_password_is_not_shown():
    with pytest.raises(UnavailableError) as caught:
        Database("postgresql+psycopg://someone:hunter2@127.0.0.1:1/x?connect_timeout=2")
    assert "hunter2" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_one_server_at_a_time(url: str):
    first = Database(url)
    with pytest.raises(UnavailableError, match="another server holds"):
        Database(url)
    Database(url, read_only=True).close()
    first.close()
    Database(url).close()


def test_a_failed_start_lets_go_of_the_lock(tmp_path: Path, url: str):
    (tmp_path / "bandit.db").write_text("this is no database")
    for _ in range(2):
        with pytest.raises(CorruptionError):
            Database(url)
    (tmp_path / "bandit.db").unlink()
    Database(url).close()


def test_commits_are_durable(url: str):
    database = Database(url)
    with database.writer.connect() as connection:
        found = [
            connection.execute(text(f"pragma {name}")).scalar_one()
            for name in ("synchronous", "journal_mode", "fullfsync", "checkpoint_fullfsync")
        ]
    with database.reader.connect() as connection:
        query_only = connection.execute(text("pragma query_only")).scalar_one()
        checkpoint = connection.execute(text("pragma wal_autocheckpoint")).scalar_one()
    database.close()
    assert found == [2, "wal", 1, 1]
    assert (query_only, checkpoint) == (1, 0)


def test_readers_can_not_write(url: str):
    database = Database(url)
    with (
        database.reader.connect() as connection,
        pytest.raises(OperationalError, match="readonly"),
    ):
        connection.execute(text("insert into facts values ('a', 'b')"))
    database.close()
