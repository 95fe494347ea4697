"""The log of a real server, exported, is decided again bit for bit; one changed bit is found."""

import dataclasses
import math
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from server import learned, parquet, retention
from server.commands import run
from server.live import tenant_secret
from server.pb import bandit_pb2 as pb
from server.settings import load_secret
from sims import log as sim_log
from sims.replay.rerun import Rerun, described, rerun
from tests.server.harness import Clock, Peer
from tests.server.test_ledger import POLICIES, RULE, as_reporter, roll_back

GROUPS = {"random": 0.2, "baseline": 0.1, "no_contact": 0.1}
NAME = "repeated"


class Exported(NamedTuple):
    """An exported experiment."""

    log: Path
    learned: Path
    experiment: Experiment

    def rerun(self) -> Rerun:
        return rerun(self.log, self.learned, self.experiment)


def exported(peer: Peer, folder: Path, name: str = NAME) -> Exported:
    live = peer.live(name)
    log, taught = folder / "log.parquet", folder / "learned.parquet"
    with peer.server.database.reader.connect() as connection:
        parquet.write(connection, live, log, lambda _: None)
        learned.write(connection, live, taught, lambda _: None)
    spec, tenant = described(log)
    assert spec == live.experiment.spec
    secret = tenant_secret(load_secret(peer.settings), tenant)
    return Exported(log, taught, Experiment(spec, secret=secret))


@pytest.fixture
def still(tmp_path: Path) -> Iterator[Peer]:
    with Peer(tmp_path, clock=Clock()) as made:
        yield made


def play(peer: Peer, first: int, n: int, *, late: bool = False, reporter: str = "local") -> None:
    """Decide for n customers, some under rules of their own; most of whom buy."""
    asked = []
    for i in range(first, first + n):
        values: dict[str, Any] = {
            "age": {"number": 18 + (i * 7) % 70},
            "has_app": {"flag": i % 2 == 0},
        }
        if i % 3:
            values["segment"] = {"category": ("new", "regular", "unheard of")[i % 3]}
        rules = [{"channel": "push", "reason": "no consent"}] if i % 5 == 0 else []
        rules += [{"channel": "email", "reason": "bounced"}] if i % 20 == 0 else []
        fields = {"context": {"values": values}, "exclusions": rules}
        asked.append(peer.decide(NAME, f"r{i}", **fields))
        peer.clock.advance(0.25)
    with as_reporter(peer, reporter):
        for i, one in enumerate(asked):
            if one.HasField("action") and i % 3:
                peer.reward(NAME, f"bought {one.decision_id}", one.decision_id, name="bought")
    peer.clock.advance(101)
    peer.learn(NAME)
    for one in asked[::4] if late else ():
        if one.HasField("action"):
            peer.reward(NAME, f"refund {one.decision_id}", one.decision_id, name="refunded")
    peer.learn(NAME)


def story(peer: Peer, policy: dict[str, Any]) -> None:
    """Six stretches, corrections, a pause, and some decisions that are open."""
    baseline = {"variant": "long", "channel": "email"}
    peer.create(NAME, policy=policy, outcome=RULE, groups=GROUPS, baseline=baseline)
    for k in range(5):
        play(peer, 30 * k, 30, late=k % 2 == 1)
    peer.experiments.PauseExperiment(pb.PauseExperimentRequest(name=NAME))
    for i in range(10):
        peer.decide(NAME, f"paused {i}")
    peer.experiments.StartExperiment(pb.StartExperimentRequest(name=NAME))
    for i in range(10):
        peer.decide(NAME, f"open {i}")


@pytest.mark.parametrize("policy", [*POLICIES.values(), {"kind": "top_two"}])
def test_every_decision_comes_out_again(still: Peer, tmp_path: Path, policy: dict[str, Any]):
    story(still, policy)
    found = exported(still, tmp_path).rerun()
    assert found.differences == []
    assert (found.wrong, found.undone, found.dropped) == (0, 0, 0)
    assert found.decisions == found.repeated == 170
    assert found.snapshots == still.experiment(NAME).snapshot.version > 4
    assert found.outcomes > 100


def test_after_a_rollback(still: Peer, tmp_path: Path):
    story(still, {})
    roll_back(still, NAME, to_snapshot=2)
    still.learn(NAME)
    play(still, 300, 20, reporter="mallory")
    play(still, 320, 20)
    roll_back(still, NAME, without_reporter="mallory")
    still.learn(NAME)
    play(still, 340, 20)
    found = exported(still, tmp_path).rerun()
    assert found.differences == []
    assert found.decisions == found.repeated == 230
    assert found.snapshots == still.experiment(NAME).snapshot.version


def test_after_old_entries_were_dropped(still: Peer, tmp_path: Path):
    story(still, {})
    still.clock.advance(5 * 86_400)
    play(still, 200, 30)
    play(still, 230, 30)
    live = still.live(NAME)
    before = still.clock.now - 3 * 86_400 * 1_000_000
    writer = still.server.writer
    cut = writer.call(lambda c: retention.advance(c, live, before, still.clock.now))
    dropped = writer.call(lambda c: retention.drop(c, live.id, cut, 0, 1_000)).decisions
    assert dropped > 50
    found = exported(still, tmp_path).rerun()
    assert found.differences == []
    assert found.decisions == found.repeated + found.dropped
    assert found.repeated >= 30


# --- changed logs -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("told")
    with Peer(folder, clock=Clock()) as peer:
        story(peer, {"half_life": 600})
        return exported(peer, folder)


def changed(path: Path, out: Path, column: str, row: int, change: Callable[[Any], Any]) -> Path:
    table = pq.read_table(path)
    cells = table[column].to_pylist()
    cells[row] = change(cells[row])
    at = table.schema.get_field_index(column)
    field = table.schema.field(at)
    pq.write_table(table.set_column(at, field, pa.array(cells, field.type)), out)
    return out


def last_bit(value: float) -> float:
    (bits,) = struct.unpack("<q", struct.pack("<d", value))
    return struct.unpack("<d", struct.pack("<q", bits ^ 1))[0]


def row_of(told: Exported, holds: Callable[[dict[str, Any]], bool]) -> int:
    rows = pq.read_table(told.log).to_pylist()
    return next(i for i, row in enumerate(rows) if i > 40 and holds(row))


def is_chosen(row: dict[str, Any]) -> bool:
    return row["reason"] == "policy" and row["context.age"] is not None


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "the last bit of a propensity": ("propensity", last_bit),
    "another action": ("action", lambda a: (a + 1) % 4),
    "no action": ("action", lambda _: None),
    "the last bit of a context": ("context.age", last_bit),
    "another category": ("context.segment", lambda s: "new" if s != "new" else "regular"),
    "a flag": ("context.has_app", lambda f: not f),
    "another request": ("request_id", lambda r: r + "x"),
    "a millisecond": (
        "decided_at",
        lambda t: t.replace(microsecond=(t.microsecond + 1_000) % 10**6),
    ),
    "another draw": ("decision_id", lambda d: d[:-1] + ("0" if d[-1] != "0" else "1")),
    "another group": ("group", lambda _: "random"),
    "another reason": ("reason", lambda _: "random_group"),
    "an older belief": ("snapshot_version", lambda v: v - 1),
    "a belief that never was": ("snapshot_version", lambda _: 999),
    "another customer": ("customer_key", lambda c: c[:-1] + ("0" if c[-1] != "0" else "1")),
    "another customer's group": ("customer_key", lambda _: None),
    "another time zone": ("time_zone", lambda _: "Europe/Berlin"),
    "another hash": ("request_hash", lambda _: "0" * 32),
    "the last bit of an outcome": ("outcome", last_bit),
    "rules that were not there": (
        "exclusions",
        lambda _: '[{"variant":"short","reason":"x"},{"channel":"email","reason":"x"}]',
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_the_log_is_found_at_its_row(told: Exported, tmp_path: Path, change: str):
    assert told.rerun().wrong == 0
    column, alter = CHANGES[change]
    if change == "another customer's group":
        rows = pq.read_table(told.log).to_pylist()
        elsewhere = next(r["customer_key"] for r in rows if r["group"] == "no_contact")

        def alter(_: object) -> str:
            return elsewhere

    row = row_of(
        told, lambda r: is_chosen(r) and r["outcome"] is not None and r["action"] is not None
    )
    path = changed(told.log, tmp_path / "log.parquet", column, row, alter)
    found = rerun(path, told.learned, told.experiment)
    assert found.wrong > 0
    assert {d.row for d in found.differences if d.file == str(path)} == {row + 1}
    assert str(found.differences[0]).startswith(f"{path}: row {row + 1}, column ")


LEARNED: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "the last bit of a value": ("outcome", "value", last_bit),
    "another decision": ("outcome", "decision_sequence", lambda _: 1),
    "a snapshot's digest": ("snapshot", "digest", lambda d: bytes([d[0] ^ 1]) + d[1:]),
    "a snapshot's place": ("snapshot", "sequence", lambda s: s + 1),
    "a snapshot's version": ("snapshot", "version", lambda v: v + 100),
    "a replaced value": ("outcome", "replaced", lambda v: 1.0 if v is None else None),
    "a kind": ("outcome", "kind", lambda _: "anew"),
}


@pytest.mark.parametrize("change", LEARNED)
def test_a_change_in_what_was_learned_is_found(told: Exported, tmp_path: Path, change: str):
    kind, column, alter = LEARNED[change]
    rows = pq.read_table(told.learned).to_pylist()
    row = [i for i, one in enumerate(rows) if one["kind"] == kind][1]
    path = changed(told.learned, tmp_path / "learned.parquet", column, row, alter)
    try:
        found = rerun(told.log, path, told.experiment)
    except InvalidInputError as refused:
        assert f"{path}: row {row + 1}" in refused.field
        return
    assert found.wrong > 0
    assert found.undone + found.repeated <= found.decisions


def test_the_last_lesson_of_all_is_held_against_the_log(told: Exported, tmp_path: Path):
    """Nothing was published after it, so no digest can tell."""
    rows = pq.read_table(told.learned).to_pylist()
    path = changed(told.learned, tmp_path / "l.parquet", "value", len(rows) - 2, lambda v: v)
    assert rerun(told.log, path, told.experiment).wrong == 0
    table = pq.read_table(told.learned)
    cut = table.slice(0, len(rows) - 1)  # the last snapshot is gone
    assert rows[-1]["kind"] == "snapshot"
    pq.write_table(cut, path)
    last = len(rows) - 2
    changed(path, path, "value", last, last_bit)
    found = rerun(told.log, path, told.experiment)
    assert "outcome" in {one.column for one in found.differences}


def test_files_of_something_else_are_refused(told: Exported, tmp_path: Path):
    with pytest.raises(InvalidInputError, match="has no column 'decision_id'"):
        rerun(told.learned, told.learned, told.experiment)
    with pytest.raises(InvalidInputError, match="has no column 'kind'"):
        rerun(told.log, told.log, told.experiment)
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(told.log).replace_schema_metadata({}), bare)
    with pytest.raises(InvalidInputError, match="does not say which experiment"):
        described(bare)
    path = changed(told.log, tmp_path / "a.parquet", "decision_id", 3, lambda _: "x")
    with pytest.raises(InvalidInputError, match='row 4, column "decision_id": must be a UUID'):
        rerun(path, told.learned, told.experiment)
    path = changed(told.log, tmp_path / "a.parquet", "exclusions", 3, lambda _: "[{}]")
    with pytest.raises(InvalidInputError, match='row 4, column "exclusions": must be rules'):
        rerun(path, told.learned, told.experiment)


def test_another_secret_is_seen(told: Exported):
    other = Experiment(told.experiment.spec, secret=b"another one, of 16 bytes")
    found = rerun(told.log, told.learned, other)
    assert found.wrong >= found.decisions


def test_an_export_is_a_log_that_can_be_evaluated(told: Exported):
    log = sim_log.read(told.log, told.experiment.spec)
    rows = pq.read_table(told.log).to_pylist()
    used = [
        r for r in rows if r["reason"] in ("policy", "random_group") and r["outcome"] is not None
    ]
    assert log.rewards.tolist() == [r["outcome"] for r in used]
    assert log.propensities.tolist() == [r["propensity"] for r in used]
    assert sum(log.separated.values()) == len(rows) - len(used)
    assert log.excluded == {}
    only = sim_log.read(told.log, told.experiment.spec, groups=("random",))
    assert set(only.propensities.tolist()) <= {0.25, 0.5}
    assert dataclasses.asdict(only)["size"] == 4
    assert math.isfinite(only.rewards.sum())


# --- the commands -------------------------------------------------------------------------


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with Peer(tmp_path, clock=Clock()) as peer:
        story(peer, {})
    monkeypatch.chdir(tmp_path)

    def banditctl(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["banditctl", *arguments])
        try:
            status = run()
        except SystemExit as end:
            status = int(end.code or 0)
        return (status, *capsys.readouterr())

    status, out, err = banditctl("export", NAME, "log.parquet", "--learned", "learned.parquet")
    assert (status, err) == (0, "")
    assert "exported: 170 decisions to log.parquet" in out
    status, out, err = banditctl("rerun", "log.parquet", "learned.parquet")
    assert (status, err) == (0, "")
    assert "rerun: 170 of 170 decisions come out again bit for bit" in out
    changed(Path("log.parquet"), Path("bad.parquet"), "propensity", 77, lambda _: 0.123)
    status, out, err = banditctl("rerun", "bad.parquet", "learned.parquet")
    assert status == 1
    assert err.startswith(
        'error: 1 differences; the first: bad.parquet: row 78, column "propensity"'
    )
    assert "bad.parquet, row 78, propensity" in out
    Path("bandit.db.secret").write_text("another secret of at least 32 characters")
    status, _, err = banditctl("rerun", "log.parquet", "learned.parquet")
    assert status == 1
    assert "is the secret the server's?" in err
