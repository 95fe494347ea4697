"""A log with rankings is a log like any other: every place of it comes out again."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from server import ranking
from server.audit import audit
from server.commands import app
from server.pb import bandit_pb2 as pb
from sims.replay import decided
from tests.server.harness import Clock, Peer
from tests.server.test_ranking import BASELINE, create, rank, show
from tests.server.test_rerun import Exported, exported

NAME = "ranked"


class Story(NamedTuple):
    """A server that has ranked, and its log as a file."""

    peer: Peer
    folder: Path
    exported: Exported


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("ranked")
    (folder / "bandit.db.secret").write_text("7" * 64)  # it draws the groups
    with Peer(folder, clock=Clock()) as peer:
        play(peer)
        yield Story(peer, folder, exported(peer, tmp_path_factory.mktemp("exported"), NAME))


def play(peer: Peer) -> None:
    """Rankings and decisions of all kinds, before and after learning."""
    groups = {"random": 0.2, "baseline": 0.1, "no_contact": 0.1}
    name = create(peer, NAME, groups=groups, baseline=BASELINE)
    for i in range(60):
        rules = [{"channel": "push", "reason": "no \u201cpush\u201d"}] if i % 4 == 0 else []
        fields = {"exclusions": rules, "include_removed": i % 3 == 0, "time_zone": "Asia/Tokyo"}
        places = rank(peer, name, f"call {i}#7", 1 + i % 5, **fields)
        peer.decide(name, f"mail {i}#2", exclusions=rules)
        for one in places[: 1 + i % 2]:
            show(peer, one)
            if one.HasField("action") and i % 3:
                peer.reward(name, f"e {one.request_id}", one.decision_id)
        if i % 20 == 19:
            peer.clock.advance(4_000)
            peer.learn(name)
    peer.experiments.PauseExperiment(pb.PauseExperimentRequest(name=name))
    rank(peer, name, "paused")


def test_every_place_comes_out_again(story: Story):
    found = story.exported.rerun()
    assert found.differences == []
    assert (found.wrong, found.undone) == (0, 0)
    assert found.decisions == found.repeated > 150
    assert found.snapshots == 3
    assert found.outcomes > 60
    assert decided.MAX_PLACES == ranking.MAX_PLACES


def test_the_audit_finds_nothing(story: Story):
    with story.peer.server.database.reader.connect() as connection:
        found = audit(connection, story.peer.live(NAME))
    assert found.problems == []
    assert found.repeated == found.decisions > 150


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("verify", "3 snapshots equal their fold bit for bit"),
        ("rerun", "decisions come out again bit for bit"),
    ],
)
def test_commands_take_it(story: Story, tmp_path: Path, command: str, said: str):
    """As an operator types them, on a copy of the database."""
    for file in story.folder.iterdir():
        shutil.copy(file, tmp_path)
    database = ("--database", f"sqlite:///{tmp_path / 'bandit.db'}")
    files = (str(story.exported.log), str(story.exported.learned))
    arguments = (command, *(files if command == "rerun" else ()), *database)
    found = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert found.exit_code == 0, found.output
    assert said in found.output


@pytest.mark.parametrize("column", ["exclusions", "request_hash"])
def test_a_place_with_other_rules_does_not(story: Story, tmp_path: Path, column: str):
    """Another rule in place of what was ranked above, and the hash of another place."""
    table = pq.read_table(story.exported.log)
    ids, cells = table.column("request_id").to_pylist(), table.column(column).to_pylist()
    at = ids.index("call 3#7#4")
    cells[at] = cells[ids.index("call 3#7#3")]
    field = table.schema.field(column)
    table = table.set_column(table.column_names.index(column), field, pa.array(cells, field.type))
    pq.write_table(table, tmp_path / "changed.parquet")
    found = story.exported._replace(log=tmp_path / "changed.parquet").rerun()
    assert found.wrong
    assert {one.row for one in found.differences} == {at + 1}
