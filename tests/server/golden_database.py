"""Write the database of this release, to be opened by every later one.

``python -m tests.server.golden_database`` writes ``tests/golden/database-REVISION.db``, an SQLite
file, and beside it a ``.json`` with the secret and with what was answered. Run it once for each
released schema, and never again: the files are what the releases wrote.
"""

import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict

from server.pb import bandit_pb2 as pb
from tests.server.harness import Clock, Peer, decide_request

GOLDEN = Path(__file__).parents[1] / "golden"
SECRET = "golden " * 6
GROUPS = {"random": 0.2, "baseline": 0.2, "no_contact": 0.1}
FIRST, SECOND = "welcome", "goodbye"


def requests(name: str, count: int, prefix: str = "r") -> Iterator[pb.DecideRequest]:
    """Give requests that differ in all that a request can say."""
    for i in range(count):
        values: dict[str, Any] = {"age": {"number": 20 + i % 60}, "has_app": {"flag": i % 2 == 0}}
        yield decide_request(
            name,
            f"{prefix}{i}",
            context={"values": values},
            exclusions=[{"channel": "push", "reason": "no app"}] if i % 4 == 0 else [],
            include_propensities=i % 3 == 0,
        )


def answered(peer: Peer, request: pb.DecideRequest) -> dict[str, Any]:
    """Decide; give the answer as JSON, without the mark of a repeated request."""
    answer = MessageToDict(peer.decisions.Decide(request).decision)
    answer.pop("repeatedRequest", None)
    return answer


def play(peer: Peer) -> list[dict[str, Any]]:
    """Fill a database with entries of every kind, in two experiments; give all answers."""
    baseline = {"variant": "long", "channel": "email"}
    peer.create(FIRST, groups=GROUPS, baseline=baseline)
    clicks = {"window": 3_600, "aggregation": "max", "rewards": [{"name": "click"}]}
    peer.create(SECOND, policy={"posterior": "beta_bernoulli"}, outcome=clicks)
    answers = []
    for turn in range(3):
        for name in (FIRST, SECOND):
            for i, request in enumerate(requests(name, 15, f"turn {turn} ")):
                answers.append(answered(peer, request))
                one = answers[-1]["decisionId"]
                if i % 2:
                    peer.reward(name, f"{turn} click {i}", one)
                if i % 5 == 0 and name == FIRST:
                    peer.reward(name, f"{turn} buy {i}", one, name="buy", value=i)
                    peer.reward(name, f"{turn} late {i}", one)
        peer.clock.advance(4_000)
        for name in (FIRST, SECOND):
            peer.learn(name)
    answers += [answered(peer, request) for request in requests(FIRST, 5, "open ")]
    peer.experiments.PauseExperiment(pb.PauseExperimentRequest(name=SECOND))
    answers += [answered(peer, request) for request in requests(SECOND, 3, "paused ")]
    return answers


def main() -> None:
    """Write the files for the schema of this release."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bandit.db.secret").write_text(SECRET)
        with Peer(folder, clock=Clock()) as peer:
            answers = play(peer)
            now = peer.clock.now
        connection = sqlite3.connect(folder / "bandit.db")
        connection.execute("PRAGMA journal_mode = delete")
        connection.execute("VACUUM")
        [revision] = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        connection.close()
        target = GOLDEN / f"database-{revision}.db"
        shutil.copy(folder / "bandit.db", target)
    content = {"secret": SECRET, "now": now, "answers": answers}
    target.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
