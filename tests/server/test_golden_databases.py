"""Databases that earlier releases wrote: migrated, proved, and served again, on both kinds.

A later schema adds one pair of files, made by ``golden_database``, and no line here.
"""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf.json_format import MessageToDict
from sqlalchemy import MetaData, create_engine, text

from bandit.errors import StateError
from server.audit import audit
from server.database import Database, migrate
from server.pb import bandit_pb2 as pb
from tests.postgres import PostgresServer
from tests.server.golden_database import FIRST, GOLDEN, SECOND, requests
from tests.server.harness import Clock, Peer

FILES = sorted(GOLDEN.glob("database-*.db"))


class Old(NamedTuple):
    """A database of an earlier release, and what that release answered."""

    folder: Path
    url: str
    now: int
    answers: list[dict[str, Any]]


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(params=["sqlite", "postgresql"])
def old(request: pytest.FixtureRequest, golden: Path, tmp_path: Path) -> Old:
    """Give a copy of the old database, of one kind."""
    known = json.loads(golden.with_suffix(".json").read_text())
    (tmp_path / "bandit.db.secret").write_text(known["secret"])
    if request.param == "sqlite":
        shutil.copy(golden, tmp_path / "bandit.db")
        url = f"sqlite:///{tmp_path / 'bandit.db'}"
    else:
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.empty()
        transfer(golden, url)
    return Old(tmp_path, url, known["now"], known["answers"])


def transfer(golden: Path, url: str) -> None:
    """Make the old schema on PostgreSQL by its migrations, and copy every row."""
    source = sqlite3.connect(golden)
    source.row_factory = sqlite3.Row
    [(revision,)] = source.execute("SELECT version_num FROM alembic_version").fetchall()
    engine = create_engine(url)
    with engine.begin() as connection:
        migrate(connection, revision)
    with engine.begin() as connection:
        schema = MetaData()
        schema.reflect(connection)
        for table in schema.sorted_tables:
            rows = [dict(r) for r in source.execute(f"SELECT * FROM {table.name}")]  # noqa: S608
            if rows and table.name != "alembic_version":
                connection.execute(table.insert(), rows)
            if "id" in table.columns:
                serial = f"setval(pg_get_serial_sequence('{table.name}', 'id'), {len(rows) + 1})"
                connection.execute(text(f"SELECT {serial}"))
    engine.dispose()
    source.close()


def test_there_is_one_of_every_release():
    assert [path.stem for path in FILES][:1] == ["database-0001"]
    assert all(path.with_suffix(".json").is_file() for path in FILES)


def test_reading_does_not_migrate(old: Old):
    with pytest.raises(StateError, match="start the server once to migrate"):
        Database(old.url, read_only=True)
    Database(old.url).close()
    Database(old.url, read_only=True).close()


def test_an_old_database_is_migrated_proved_and_served(old: Old):
    clock = Clock(old.now)
    with Peer(old.folder, clock=clock, database=old.url) as peer:
        prove(peer)
        asked = {
            (request.experiment, request.request_id): request
            for name in (FIRST, SECOND)
            for prefix in ("turn 0 ", "turn 1 ", "turn 2 ", "open ", "paused ")
            for request in requests(name, 15, prefix)
        }
        for answer in old.answers:
            request = asked[answer["experiment"], answer["requestId"]]
            given = peer.decisions.Decide(request).decision
            assert given.repeated_request
            assert {k: v for k, v in MessageToDict(given).items() if k in answer} == answer

        peer.experiments.StartExperiment(pb.StartExperimentRequest(name=SECOND))
        for name in (FIRST, SECOND):
            before = peer.experiment(name).snapshot.version
            for request in requests(name, 10, "anew "):
                decision = peer.decisions.Decide(request).decision
                assert not decision.repeated_request
                assert decision.snapshot_version == before == 3
                peer.reward(name, f"anew {decision.request_id}", decision.decision_id)
            clock.advance(4_000)
            peer.learn(name)
            assert peer.experiment(name).snapshot.version == before + 1
            edit = pb.AddLevelRequest(
                name=name,
                factor="variant",
                level=pb.Level(name="poem"),
                request_id="edit",
                reason="a test",
            )
            assert peer.experiments.AddLevel(edit).revision.number == 2
            for request in requests(name, 10, "edited "):
                assert peer.decisions.Decide(request).decision.snapshot_version == before + 2
        peer.create("another")
        peer.decide("another", "first")
        prove(peer)


def prove(peer: Peer) -> None:
    with peer.server.database.reader.connect() as connection:
        for live in peer.server.live.entries():
            found = audit(connection, live)
            assert found.problems == []
            assert found.repeated == found.decisions > 0
