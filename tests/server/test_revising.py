"""Experiments are edited while they run: nothing is reset, and all that was decided stays right."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict

from bandit import encoding
from bandit.errors import ChangedError
from server import catalogue, retention, revising
from server.audit import Findings, audit
from server.live import LiveExperiment
from server.pb import bandit_pb2 as pb
from tests.postgres import PostgresServer
from tests.server.harness import (
    SPEC,
    Peer,
    Store,
    decide_request,
    eventually,
    refusal,
)

NAME = "edited"
GROUPS = {"random": 0.2}


def add(
    peer: Peer, level: object, factor: str = "variant", **fields: object
) -> pb.AddLevelResponse:
    """Add a level by its name, or as it is given."""
    data = {"name": level} if isinstance(level, str) else level
    fields = {"request_id": f"add {data}", "reason": "a test", "name": NAME, **fields}
    request = ParseDict({"factor": factor, "level": data, **fields}, pb.AddLevelRequest())
    return peer.experiments.AddLevel(request)


def retire(
    peer: Peer, level: str, factor: str = "variant", **fields: object
) -> pb.RetireLevelResponse:
    fields = {"request_id": f"retire {level}", "reason": "a test", "name": NAME, **fields}
    return peer.experiments.RetireLevel(pb.RetireLevelRequest(factor=factor, level=level, **fields))


def update(
    peer: Peer, paths: str | list[str], spec: dict[str, Any], **fields: object
) -> pb.UpdateExperimentResponse:
    """Take some paths over from a part of a specification."""
    listed = [paths] if isinstance(paths, str) else paths
    fields = {"request_id": f"update {listed} {spec}"[:128], "reason": "a test", **fields}
    fields.setdefault("name", NAME)
    return peer.experiments.UpdateExperiment(
        pb.UpdateExperimentRequest(
            spec=ParseDict(spec, pb.ExperimentSpec()),
            update_mask=FieldMask(paths=listed),
            **fields,
        )
    )


def findings(peer: Peer, name: str = NAME) -> Findings:
    """Audit an experiment as ``banditctl verify`` does, with all that is decided decided again."""
    with peer.server.database.reader.connect() as connection:
        found = audit(connection, peer.live(name))
    assert found.problems == []
    assert found.repeated == found.decisions
    return found


def play(peer: Peer, prefix: str, n: int = 12, *, name: str = NAME) -> list[pb.Decision]:
    """Decide for some customers, all of whom are told of; learn, and let the time pass."""
    made = []
    for i in range(n):
        context = {"values": {"age": {"number": 18 + i * 5 % 70}, "has_app": {"flag": i % 2 == 0}}}
        fields = {"context": context, "include_propensities": i % 3 == 0}
        made.append(peer.decide(name, f"{prefix} {i}", **fields))
    for i, one in enumerate(made):
        if i % 2 and one.HasField("action"):
            peer.reward(name, f"{prefix} {i}", one.decision_id)
    peer.clock.advance(4_000)
    peer.learn(name)
    return made


def variants(peer: Peer, name: str = NAME) -> list[tuple[str, int, bool]]:
    levels = peer.experiment(name).spec.actions.variants
    return [(one.name, one.generation, one.retired) for one in levels]


# --- what an edit is ----------------------------------------------------------------------


def test_levels_are_added_and_retired_while_it_runs(still: Peer):
    still.create(NAME, groups=GROUPS)
    before = play(still, "first")
    known = still.experiment(NAME)
    made = add(still, "poem")
    assert (made.revision.number, made.revision.snapshot_version) == (2, 2)
    assert (made.revision.who, made.revision.reason) == ("anonymous", "a test")
    assert variants(still) == [("short", 0, False), ("long", 0, False), ("poem", 1, False)]
    assert made.experiment.etag != known.etag
    assert made.experiment.snapshot.version == known.snapshot.version + 1
    assert made.experiment.snapshot.outcomes == known.snapshot.outcomes > 0
    assert made.experiment.snapshot.sequence == known.snapshot.sequence
    middle = play(still, "second", 40)
    assert {one.snapshot_version for one in middle} == {2}
    assert {one.action.variant for one in middle} == {"short", "long", "poem"}
    assert {len(one.propensities) for one in middle if one.propensities} == {6}
    assert {len(one.propensities) for one in before if one.propensities} == {4}
    done = retire(still, "long")
    assert done.revision.number == 3
    assert variants(still) == [("short", 0, False), ("long", 0, True), ("poem", 1, False)]
    after = play(still, "third", 40)
    assert {one.action.variant for one in after} == {"short", "poem"}
    for one in after:
        rated = {p.action_index: p.propensity for p in one.propensities}
        assert not rated or rated[2] == rated[3] == 0.0
    found = findings(still)
    assert (found.decisions, found.snapshots) == (92, 5)
    still.restart()
    assert variants(still)[1] == ("long", 0, True)
    play(still, "fourth")
    findings(still)


def test_the_belief_is_that_of_the_same_log_under_the_new_specification(still: Peer):
    still.create(NAME, groups=GROUPS)
    play(still, "first", 30)
    add(still, "poem")
    add(still, "letter", "channel")
    update(still, "policy.exploration", {"policy": {"exploration": 1.5}})
    live = still.live(NAME)
    with still.server.database.reader.connect() as connection:
        posterior, published = still.server.live.restore(connection, live)
        refolded = retention.fold(connection, live, live.experiment.prior(), live.snapshot.seq)
    assert published.version == live.snapshot.version == 4
    assert refolded is not None
    assert encoding.to_bytes(refolded) == encoding.to_bytes(posterior)
    assert live.experiment.spec.policy.exploration == 1.5
    findings(still)


def test_an_experiment_without_a_snapshot_is_edited(still: Peer):
    still.create(NAME)
    still.decide(NAME, "before")
    assert add(still, "poem").revision.snapshot_version == 1
    assert still.decide(NAME, "after").snapshot_version == 1
    play(still, "more")
    assert findings(still).snapshots == 2


def test_a_paused_experiment_is_edited_and_an_archived_one_is_not(still: Peer):
    still.create(NAME)
    play(still, "first")
    still.experiments.PauseExperiment(pb.PauseExperimentRequest(name=NAME))
    still.decide(NAME, "paused before")
    add(still, "poem")
    still.decide(NAME, "paused after")
    still.experiments.StartExperiment(pb.StartExperimentRequest(name=NAME))
    play(still, "second")
    findings(still)
    still.experiments.ArchiveExperiment(pb.ArchiveExperimentRequest(name=NAME))
    refused = refusal(retire, still, "poem")
    assert refused[:1] + refused[2:4] == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "WRONG_STATE",
        "name",
    )
    findings(still)


def test_a_draft_may_change_altogether(still: Peer):
    still.create(NAME, start=False)
    spec = {
        "name": NAME,
        "actions": {"variants": [{"name": "a"}, {"name": "z"}], "channels": [{"name": "sms"}]},
        "outcome": {"window": 60, "rewards": [{"name": "sold", "bounds": [0, 9]}]},
    }
    made = update(still, [], spec)
    assert (made.revision.number, made.revision.snapshot_version) == (2, 0)
    assert made.experiment.snapshot.version == 0
    added = add(still, "b")
    assert variants(still) == [("a", 0, False), ("z", 0, False), ("b", 0, False)]
    assert added.revision.snapshot_version == 0
    refused = refusal(update, still, [], {**spec, "name": "other"})
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, "spec.name")
    still.experiments.StartExperiment(pb.StartExperimentRequest(name=NAME))
    one = still.decide(NAME, "first", context={})
    assert one.snapshot_version == 0
    still.reward(NAME, "sold", one.decision_id, name="sold", value=7)
    still.clock.advance(100)
    still.learn(NAME)
    add(still, "c")
    assert variants(still)[3] == ("c", 1, False)
    refused = refusal(add, still, "mail", "channel")
    assert "no term names channel" in refused.message
    findings(still)
    still.restart()
    assert not still.live(NAME).experiment.spec.context
    findings(still)


# --- once, whatever happens ---------------------------------------------------------------


def test_the_same_request_makes_one_edit(still: Peer):
    still.create(NAME)
    first = add(still, "poem", request_id="one")
    retire(still, "poem", request_id="two")
    assert add(still, "poem", request_id="one", etag="seen before").revision == first.revision
    still.restart()
    assert add(still, "poem", request_id="one").revision == first.revision
    assert variants(still)[2:] == [("poem", 1, True)]
    for other in (
        lambda: add(still, "song", request_id="one"),
        lambda: add(still, "poem", "channel", request_id="one"),
        lambda: add(still, "poem", request_id="one", reason="another"),
        lambda: retire(still, "poem", request_id="one"),
        lambda: update(still, "description", {"description": "x"}, request_id="one"),
    ):
        refused = refusal(other)
        assert refused.code is grpc.StatusCode.ALREADY_EXISTS
        assert (refused.reason, refused.field) == ("CONFLICTING_REUSE", "request_id")
    assert still.experiment(NAME).snapshot.version == 2


def test_creating_again_after_an_edit_gives_the_experiment(still: Peer):
    still.create(NAME)
    add(still, "poem")
    spec = ParseDict({**SPEC, "name": NAME}, pb.ExperimentSpec())
    request = pb.CreateExperimentRequest(spec=spec, request_id=f"create {NAME}")
    assert still.experiments.CreateExperiment(request).experiment == still.experiment(NAME)
    request.spec.actions.variants.add(name="poem", generation=1)
    refused = refusal(still.experiments.CreateExperiment, request)
    assert refused.code is grpc.StatusCode.ALREADY_EXISTS


def test_an_etag_that_is_not_the_newest(still: Peer):
    still.create(NAME)
    seen = still.experiment(NAME).etag
    newer = add(still, "poem", etag=seen).experiment.etag
    for late in (
        lambda: add(still, "song", etag=seen),
        lambda: add(still, "poem", etag=seen, request_id="other"),
        lambda: retire(still, "poem", etag=seen),
        lambda: update(still, "description", {"description": "x"}, etag=seen),
        lambda: still.experiments.PauseExperiment(pb.PauseExperimentRequest(name=NAME, etag=seen)),
    ):
        refused = refusal(late)
        assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "ETAG_CHANGED")
        assert refused.field == "etag"
    retire(still, "poem", etag=newer)


def test_of_editors_who_saw_the_same_one_wins(still: Peer):
    still.create(NAME)
    seen = still.experiment(NAME).etag
    start = threading.Barrier(6)

    def edit(i: int) -> str:
        start.wait()
        try:
            return f"revision {add(still, f'v{i}', etag=seen).revision.number}"
        except grpc.RpcError as error:
            return str(error.code().name)

    with ThreadPoolExecutor(6) as pool:
        ended = sorted(pool.map(edit, range(6)))
    assert ended == ["ABORTED"] * 5 + ["revision 2"]
    assert len(variants(still)) == 3


def test_editors_without_an_etag_all_have_their_way(still: Peer):
    still.create(NAME)
    start = threading.Barrier(6)

    def edit(i: int) -> int:
        start.wait()
        if i < 4:
            return add(still, f"v{i}").revision.number
        if i == 4:
            made = update(still, "policy.exploration", {"policy": {"exploration": 2.0}})
            return made.revision.number
        return retire(still, "long").revision.number

    with ThreadPoolExecutor(6) as pool:
        assert sorted(pool.map(edit, range(6))) == [2, 3, 4, 5, 6, 7]
    found = variants(still)
    assert [generation for _, generation, _ in found[2:]] == [1, 2, 3, 4]
    assert found[1] == ("long", 0, True)
    assert still.experiment(NAME).spec.policy.exploration == 2.0
    play(still, "after", 30)
    findings(still)


def test_an_edit_and_a_pause_at_once_are_both_kept(still: Peer):
    for i in range(8):
        name = still.create(f"{NAME}-{i}")
        start = threading.Barrier(2)

        def pause(name: str = name, start: threading.Barrier = start) -> None:
            start.wait()
            still.experiments.PauseExperiment(pb.PauseExperimentRequest(name=name))

        def edit(name: str = name, start: threading.Barrier = start) -> None:
            start.wait()
            add(still, "poem", name=name)

        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(pause), pool.submit(edit)]:
                done.result()
        found = still.experiment(name)
        assert found.state == pb.STATE_PAUSED
        assert len(found.spec.actions.variants) == 3
        assert found.etag.endswith("-4")


# --- what was decided before --------------------------------------------------------------


def test_a_repeated_request_gets_its_first_answer(still: Peer):
    still.create(NAME, groups=GROUPS)
    rules = [{"channel": "push", "reason": "no app"}]
    asked = [
        decide_request(
            NAME, f"r{i}", exclusions=rules, include_removed=True, include_propensities=True
        )
        for i in range(6)
    ]
    first = [still.decisions.Decide(request).decision for request in asked]
    assert {len(one.removed) for one in first} == {2}
    add(still, "poem")
    retire(still, "long")
    late = still.decisions.Decide(decide_request(NAME, "late", include_removed=True)).decision
    assert [one.reason for one in late.removed] == ["retired", "retired"]
    for _ in range(2):
        for request, answer in zip(asked, first, strict=True):
            again = still.decisions.Decide(request).decision
            assert again.repeated_request
            again.repeated_request = False
            assert again == answer
            found = still.get(NAME, answer.decision_id).decision
            assert found == answer
        batch = still.decisions.BatchDecide(pb.BatchDecideRequest(requests=asked))
        for again, answer in zip(batch.decisions, first, strict=True):
            again.repeated_request = False
            assert again == answer
        still.restart()


# --- learning across an edit --------------------------------------------------------------


def test_a_learner_that_folded_with_the_old_specification_publishes_nothing(
    still: Peer, monkeypatch: pytest.MonkeyPatch
):
    still.create(NAME)
    play(still, "first")
    for i in range(8):
        one = still.decide(NAME, f"second {i}")
        still.reward(NAME, f"second {i}", one.decision_id)
    still.clock.advance(4_000)
    learner = still.server.learner
    old, publish = still.live(NAME), learner._publish_next
    edited = []

    def edit_first(live: LiveExperiment, student: Any) -> None:  # noqa: ANN401
        if not edited:
            edited.append(update(still, "policy.exploration", {"policy": {"exploration": 2.0}}))
        publish(live, student)

    monkeypatch.setattr(learner, "_publish_next", edit_first)
    with pytest.raises(ChangedError):
        while learner.step(old, flush=True):
            pass
    learner._students.clear()  # as the learner's thread does
    while learner.step(old, flush=True):  # it is told of the old one, and finds the new one
        pass
    live = still.live(NAME)
    assert (live.snapshot.version, live.snapshot.count) == (3, 20)
    again = live.experiment.publish(_restored(still, live), version=3)
    np.testing.assert_equal(again.belief.mean, live.snapshot.belief.mean)  # type: ignore[attr-defined]
    play(still, "third")
    findings(still)


def _restored(peer: Peer, live: LiveExperiment) -> Any:  # noqa: ANN401
    with peer.server.database.reader.connect() as connection:
        return peer.server.live.restore(connection, live)[0]


@pytest.mark.parametrize("meanwhile", ["published", "edited", "both", "started"])
def test_what_happens_between_the_plan_and_its_transaction(
    still: Peer, monkeypatch: pytest.MonkeyPatch, meanwhile: str
):
    still.create(NAME, start=meanwhile != "started")
    for i in range(8):
        if meanwhile != "started":
            one = still.decide(NAME, f"first {i}")
            still.reward(NAME, f"first {i}", one.decision_id)
    still.clock.advance(4_000)
    ahead, happened = revising.Reviser._ahead, []

    def first(reviser: revising.Reviser, plan: Any) -> Any:  # noqa: ANN401
        made = ahead(reviser, plan)
        if not happened:
            happened.append(meanwhile)
            if meanwhile in ("published", "both"):
                still.learn(NAME)
            if meanwhile in ("edited", "both"):
                add(still, "song")
            if meanwhile == "started":
                still.experiments.StartExperiment(pb.StartExperimentRequest(name=NAME))
        return made

    monkeypatch.setattr(revising.Reviser, "_ahead", first)
    add(still, "poem")
    assert happened
    added = [(n, g) for n, g, _ in variants(still)[2:]]
    assert added == (
        [("song", 1), ("poem", 2)] if meanwhile in ("edited", "both") else [("poem", 1)]
    )
    outcomes = still.experiment(NAME).snapshot.outcomes
    assert outcomes == (8 if meanwhile in ("published", "both") else 0)
    play(still, "after")
    findings(still)


def test_a_rollback_to_before_an_edit_keeps_the_edit(still: Peer):
    """The belief forgets what was learned since; the specification stays as it is now."""
    still.create(NAME, groups=GROUPS)
    play(still, "first", 20)
    play(still, "second", 20)
    add(still, "poem")
    play(still, "third", 20)
    before = still.experiment(NAME).snapshot
    request = pb.RollbackRequest(
        name=NAME, to_snapshot=1, reason="a poisoned client", request_id="roll back"
    )
    still.experiments.Rollback(request)
    still.learn(NAME)
    found = still.experiment(NAME)
    assert len(found.spec.actions.variants) == 3
    assert found.snapshot.version == before.version + 1
    assert found.snapshot.outcomes == 20 < before.outcomes
    play(still, "fourth", 20)
    retire(still, "long")
    play(still, "fifth", 20)
    findings(still)
    assert still.experiment(NAME).snapshot.outcomes == 60


def test_an_edit_between_a_rollback_and_its_folding(still: Peer):
    still.create(NAME)
    play(still, "first")
    play(still, "second")
    still.experiments.Rollback(
        pb.RollbackRequest(name=NAME, to_snapshot=1, reason="wrong", request_id="back")
    )
    add(still, "poem")
    assert still.experiment(NAME).snapshot.outcomes == 24
    still.learn(NAME)
    assert still.experiment(NAME).snapshot.outcomes == 12
    play(still, "third")
    findings(still)


def test_old_entries_are_dropped_on_both_sides_of_an_edit(still: Peer):
    still.create(NAME, groups=GROUPS)
    live = still.live(NAME)

    def drop() -> int:
        """Drop what is older than five hours; in a process that knows the experiment as it is."""
        before = still.clock.now - 5 * 3_600 * 1_000_000
        writer, live = still.server.writer, still.live(NAME)
        cut = writer.call(lambda c: retention.advance(c, live, before, still.clock.now))
        return writer.call(lambda c: retention.drop(c, live.id, cut, 0, 1_000)).decisions

    for turn in range(4):
        for k in range(4):
            play(still, f"{turn} {k}", 8)
        add(still, f"v{turn}")
        if turn:
            assert drop() > 0
        findings_after_dropping(still)
    retire(still, "long")
    play(still, "after", 8)
    still.experiments.Rollback(
        pb.RollbackRequest(
            name=NAME, without_reporter="anonymous", since=None, reason="wrong", request_id="back"
        )
    )
    still.learn(NAME)
    findings_after_dropping(still)
    assert still.live(NAME).spec_revision == live.spec_revision + 5
    still.restart()
    play(still, "restarted", 8)
    findings_after_dropping(still)


def findings_after_dropping(peer: Peer) -> None:
    with peer.server.database.reader.connect() as connection:
        found = audit(connection, peer.live(NAME))
    assert found.problems == []


# --- two processes ------------------------------------------------------------------------


def epoch(peer: Peer) -> int:
    with peer.server.database.reader.connect() as connection:
        return catalogue.find_experiment(connection, "default", NAME).epoch


def test_an_edit_reaches_other_processes(postgres: PostgresServer, tmp_path: Path):
    url = postgres.fresh()
    with (
        Peer(tmp_path, database=url, poll=0.05) as first,
        Peer(tmp_path, database=url, poll=0.05) as second,
    ):
        first.create(NAME, groups={"random": 1.0}, publishing={"outcomes": 5, "seconds": 0.05})
        eventually(lambda: epoch(first) == 2)  # somebody learns
        for i in range(6):
            peer = (first, second)[i % 2]
            one = peer.decide(NAME, f"r{i}")
            peer.reward(NAME, f"e{i}", one.decision_id, name="buy")
            made = add((second, first)[i % 2], f"v{i}")
            assert made.revision.number == i + 2
            eventually(lambda made=made: first.live(NAME).spec_revision == made.revision.number)
            eventually(lambda made=made: second.live(NAME).spec_revision == made.revision.number)
        for peer in (first, second):
            answers = {peer.decide(NAME, f"late {i}").action.variant for i in range(120)}
            assert "v5" in answers
        eventually(lambda: first.experiment(NAME).snapshot.outcomes == 6)
        eventually(lambda: second.experiment(NAME).snapshot.outcomes == 6)
        assert epoch(first) == 2  # and goes on: no edit took the lease away
        findings(first)
        findings(second)


def test_a_process_that_creates_again_what_was_edited_elsewhere(
    postgres: PostgresServer, tmp_path: Path
):
    """It has not heard of it; what it decides is decided with the newest snapshot all the same."""
    url = postgres.fresh()
    with Peer(tmp_path, database=url) as first, Peer(tmp_path, database=url, poll=10) as second:
        first.create(NAME)
        add(first, "poem")
        spec = ParseDict({**SPEC, "name": NAME}, pb.ExperimentSpec())
        request = pb.CreateExperimentRequest(spec=spec, request_id=f"create {NAME}")
        again = second.experiments.CreateExperiment(request).experiment
        assert again == first.experiment(NAME)
        assert second.decide(NAME, "one").snapshot_version == 1
        findings(second)


def test_edits_under_load(store: Store, tmp_path: Path):
    """While edits come, every answer is one that its snapshot's specification gives again."""
    with Peer(tmp_path, database=store(tmp_path)) as peer:
        outcome = {"window": 3_600, "rewards": [{"name": "click", "terminal": True}]}
        publishing = {"outcomes": 8, "seconds": 0.05}
        peer.create(NAME, groups=GROUPS, outcome=outcome, publishing=publishing)
        done = threading.Event()

        def drive(who: int) -> int:
            i = 0
            while not done.is_set() or i < 5:
                one = peer.decide(NAME, f"{who} {i}", include_propensities=i % 2 == 0)
                peer.reward(NAME, f"{who} {i}", one.decision_id)
                i += 1
            return i

        with ThreadPoolExecutor(3) as pool:
            driving = [pool.submit(drive, who) for who in range(3)]
            for i in range(6):
                add(peer, f"v{i}")
                floor = peer.experiment(NAME).snapshot.version
                assert peer.decide(NAME, f"after {i}").snapshot_version >= floor
                update(peer, "policy.exploration", {"policy": {"exploration": 0.1 * (i + 1)}})
                retire(peer, f"v{i}")
                assert peer.decide(NAME, f"later {i}").action.variant != f"v{i}"
            done.set()
            decided = sum(one.result() for one in driving)
        eventually(lambda: peer.experiment(NAME).snapshot.outcomes == decided)
        found = findings(peer)
        assert found.decisions == decided + 12
        with peer.server.database.reader.connect() as connection:
            assert len(catalogue.list_snapshots(connection, peer.live(NAME).id)) == found.snapshots
        assert found.snapshots > 18
