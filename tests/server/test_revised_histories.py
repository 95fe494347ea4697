"""Whatever is edited between decisions and rewards: the log proves all of it, bit for bit.

Random histories of edits, decisions, rewards, publications, rollbacks and restarts; then the
database is verified, and its export decides every decision again, propensities included.
"""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bandit.experiment import Experiment
from server import learned, parquet, retention
from server.live import tenant_secret
from server.pb import bandit_pb2 as pb
from server.settings import load_secret
from sims import log as sim_log
from sims.replay.rerun import Rerun, described, rerun
from tests.server.harness import Clock, Peer, Store
from tests.server.test_revising import GROUPS, NAME, add, findings, retire, update

CLICKS = {"window": 3_600, "aggregation": "max", "rewards": [{"name": "click"}]}
RULES = [{"variant": "long", "channel": "push", "reason": "too long"}]
PRICES = [{"name": n, "attributes": {"price": i / 4}} for i, n in enumerate(("short", "long"))]
POLICIES: dict[str, dict[str, Any]] = {
    "joint": {"policy": {"draws": 64}},
    "attributes": {"actions": {"variants": PRICES, "channels": [{"name": "email"}]}},
    "disjoint": {"policy": {"terms": [{"of": "context:variant:channel"}], "half_life": 20_000}},
    "beta": {"policy": {"posterior": "beta_bernoulli"}, "outcome": CLICKS},
    "logistic": {
        "policy": {"posterior": "logistic", "terms": [{"of": "context:variant:channel"}]},
        "outcome": CLICKS,
    },
    "top two": {"policy": {"kind": "top_two", "draws": 64}},
}
STEPS = ("play", "play", "play", "add", "add", "retire", "explore", "groups", "rules", "roll back")
HISTORIES = st.lists(st.sampled_from((*STEPS, "restart")), min_size=4, max_size=10)


class Story:
    """One history, told step by step."""

    def __init__(self, peer: Peer, changes: dict[str, Any]) -> None:
        self.peer = peer
        self._fresh = map(str, itertools.count())
        self._has_prices = "actions" in changes
        peer.create(NAME, **{"groups": GROUPS, "fallback": None, **changes})
        self.play(12)

    def play(self, n: int = 8) -> None:
        """Decide, tell of half of them, let the windows pass, learn."""
        made = []
        turn = next(self._fresh)
        for i in range(n):
            context = {"values": {"age": {"number": 18 + i * 11 % 70}, "hour": {"number": i}}}
            rules = [{"channel": "email", "reason": "bounced"}] if i == 3 else []
            fields = {"context": context, "exclusions": rules, "include_propensities": i % 2 == 0}
            made.append(self.peer.decide(NAME, f"{turn} {i}", **fields))
        for i, one in enumerate(made):
            if i % 2 and one.HasField("action"):
                self.peer.reward(NAME, f"{turn} {i}", one.decision_id)
        self.peer.clock.advance(4_000)
        self.peer.learn(NAME)

    def tell(self, step: str) -> None:
        """Do one step: one of the methods below."""
        number = next(self._fresh)
        getattr(self, f"_{step.replace(' ', '_')}")(int(number), {"request_id": number})

    def _play(self, _number: int, _asked: dict[str, str]) -> None:
        self.play()

    def _add(self, number: int, asked: dict[str, str]) -> None:
        level: dict[str, Any] = {"name": f"level {number}"}
        if self._has_prices:
            level["attributes"] = {"price": number / 50}
        add(self.peer, level, **asked)
        self.peer.decide(NAME, f"right after {number}")

    def _retire(self, number: int, asked: dict[str, str]) -> None:
        levels = self.peer.experiment(NAME).spec.actions.variants
        left = [one.name for one in levels if not one.retired]
        if len(left) > 1:
            retire(self.peer, left[number % len(left)], **asked)

    def _explore(self, number: int, asked: dict[str, str]) -> None:
        new = {"policy": {"exploration": 0.1 + number / 20}}
        update(self.peer, "policy.exploration", new, **asked)

    def _groups(self, number: int, asked: dict[str, str]) -> None:
        update(self.peer, "groups.random", {"groups": {"random": 0.1 + number % 5 / 10}}, **asked)

    def _rules(self, number: int, asked: dict[str, str]) -> None:
        rules = RULES if number % 2 and not self._has_prices else []
        update(self.peer, "actions.exclusions", {"actions": {"exclusions": rules}}, **asked)

    def _roll_back(self, number: int, asked: dict[str, str]) -> None:
        newest = self.peer.experiment(NAME).snapshot.version
        request = pb.RollbackRequest(name=NAME, reason="wrong", **asked)
        request.to_snapshot = max(newest - 1 - number % 3, 0)
        self.peer.experiments.Rollback(request)

    def _restart(self, _number: int, _asked: dict[str, str]) -> None:
        self.peer.restart()


def exported(peer: Peer, folder: Path) -> Rerun:
    """Export an experiment, and decide it again from the files alone."""
    log, taught = folder / "log.parquet", folder / "learned.parquet"
    with peer.server.database.reader.connect() as connection:
        parquet.write(connection, peer.live(NAME), log, lambda _: None)
        learned.write(connection, peer.live(NAME), taught, lambda _: None)
    spec, tenant = described(log)
    secret = tenant_secret(load_secret(peer.settings), tenant)
    found = rerun(log, taught, Experiment(spec, secret=secret))
    read = sim_log.read(log, spec)
    assert len(read.rewards) > 0
    return found


def told(store: Store, changes: dict[str, Any], history: list[str], prove: Callable[..., None]):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Peer(folder, clock=Clock(), database=store(folder)) as peer:
            story = Story(peer, changes)
            for step in history:
                story.tell(step)
            story.play()
            prove(peer, folder)


@pytest.mark.parametrize("kind", POLICIES)
def test_every_history_is_proved_and_repeated(store: Store, kind: str, tmp_path: Path):
    def prove(peer: Peer, folder: Path) -> None:
        proved = findings(peer)
        found = exported(peer, folder)
        assert found.differences == []
        assert found.repeated == found.decisions == proved.decisions
        assert found.snapshots == proved.snapshots

    def repeat(history: list[str]) -> None:
        told(store, POLICIES[kind], history, prove)

    is_file = store(tmp_path).startswith("sqlite")
    how = settings(
        max_examples=3 if is_file else 1,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    how(given(history=HISTORIES)(repeat))()


def test_a_log_that_retention_cut_is_repeated_across_edits(store: Store, tmp_path: Path):
    with Peer(tmp_path, clock=Clock(), database=store(tmp_path)) as peer:
        story = Story(peer, POLICIES["joint"])
        dropped = 0
        for step in ("add", "play", "play", "explore", "add", "play", "play", "retire", "play"):
            story.tell(step)
            before = peer.clock.now - 6_000 * 1_000_000
            live, writer = peer.live(NAME), peer.server.writer
            cut = writer.call(lambda c, a=live, b=before: retention.advance(c, a, b, b))
            dropped += writer.call(
                lambda c, a=live, cut=cut: retention.drop(c, a.id, cut, 0, 1_000)
            ).decisions
            assert exported(peer, tmp_path).differences == []
        assert dropped > 20
        for step in ("play", "play", "add", "play", "roll back", "play", "add", "play"):
            story.tell(step)
        found = exported(peer, tmp_path)
        assert found.differences == []
        assert found.repeated + found.dropped == found.decisions
        assert found.repeated > 16


def test_a_changed_revision_in_an_export_is_found(tmp_path: Path):
    with Peer(tmp_path, clock=Clock()) as peer:
        story = Story(peer, POLICIES["joint"])
        for step in ("explore", "play", "add", "play"):
            story.tell(step)
        assert exported(peer, tmp_path).wrong == 0
        secret = tenant_secret(load_secret(peer.settings), "default")
    log, taught = tmp_path / "log.parquet", tmp_path / "learned.parquet"
    table = pq.read_table(log)
    metadata = dict(table.schema.metadata)
    written = metadata[b"banditctl.revisions"]
    assert written.count(b'"version":') == 3
    metadata[b"banditctl.revisions"] = written.replace(b'"random":0.2', b'"random":0.9', 1)
    pq.write_table(table.replace_schema_metadata(metadata), log)
    found = rerun(log, taught, Experiment(described(log)[0], secret=secret))
    assert found.wrong > 0
    assert {one.column for one in found.differences} >= {"group"}
