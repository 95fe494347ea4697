"""The gate before a start: no verdict, no start; and whoever goes around it is in the audit log."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import ParseDict
from typer.testing import CliRunner

from bandit import spec_file
from bandit.errors import StateError
from bandit.gate import Gate
from bandit.verdict import Check, Verdict
from server import verdict_messages
from server.client import BanditClient
from server.commands import app, verdicts
from server.pb import bandit_pb2 as pb
from server.settings import Settings
from server.tls import Security
from server.tokens import Role
from tests.server.access_harness import Bearer, create, make_token
from tests.server.harness import SPEC, Clock, Peer, Store, refusal

ROOT = Path(__file__).parents[2]
HOLDS = Check(name="regret", source="world calm", passed=True, value=0.01, limit=0.05)
FAILS = Check(name="exploration", source="the specification", passed=False, found="it is 0")


@pytest.fixture
def gated(store: Store, tmp_path: Path) -> Iterator[Peer]:
    with Peer(tmp_path, clock=Clock(), database=store(tmp_path), gate="required") as running:
        yield running


@pytest.fixture
def client(gated: Peer) -> Iterator[BanditClient]:
    with BanditClient(f"127.0.0.1:{gated.server.port}", timeout=20.0) as made:
        yield made


def verdict(*checks: Check, **changes: object) -> Verdict:
    """Give a verdict on the experiment of the harness."""
    spec = spec_file.from_data({**SPEC, **changes})
    return Verdict(
        experiment=spec.name,
        spec_hash=spec_file.digest(spec),
        checks=checks or (HOLDS,),
        worlds=("calm 0123",),
        log="log.parquet 4567",
        seed=7,
        engine="0.1.0",
    )


def start(peer: Peer, name: str = "welcome", **fields: str) -> pb.Experiment:
    request = pb.StartExperimentRequest(name=name, **fields)
    return peer.experiments.StartExperiment(request).experiment


def refused(peer: Peer, name: str = "welcome") -> str:
    found = refusal(peer.experiments.StartExperiment, pb.StartExperimentRequest(name=name))
    assert found.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (found.field, found.retry) == ("name", False)
    assert peer.experiment(name).state == pb.STATE_DRAFT
    return found.message


def entries(peer: Peer, name: str = "welcome") -> list[pb.AuditEntry]:
    request = pb.ListAuditEntriesRequest(name=name)
    return list(reversed(peer.experiments.ListAuditEntries(request).entries))


# --- what starts ------------------------------------------------------------------------


def test_without_a_verdict_nothing_starts(gated: Peer):
    gated.create("welcome", start=False)
    message = refused(gated)
    assert "no verdict" in message
    assert "banditctl validate" in message
    assert "override" in message
    assert [entry.action for entry in entries(gated)] == ["experiment.create"]


def test_a_passing_verdict_lets_it_start(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False)
    stored = client.submit_verdict(verdict())
    assert stored.matches
    assert start(gated).state == pb.STATE_RUNNING
    told = entries(gated)
    assert [e.action for e in told] == [
        "experiment.create", "experiment.verdict", "experiment.start",
    ]  # fmt: skip
    assert stored.verdict.audit_sequence == told[1].sequence
    assert json.loads(told[1].after) == {
        "spec_hash": verdict().spec_hash, "passed": True, "stopped_by": [],
    }  # fmt: skip


def test_a_verdict_may_come_before_the_experiment(gated: Peer, client: BanditClient):
    assert not client.submit_verdict(verdict()).matches
    gated.create("welcome")
    assert gated.experiment("welcome").state == pb.STATE_RUNNING


def test_a_verdict_that_stops_names_what_stops_it(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False)
    client.submit_verdict(verdict(HOLDS, FAILS))
    assert "a verdict that stops it (exploration)" in refused(gated)


@pytest.mark.parametrize(
    "changed",
    [{"gate": {"regret": 0.5}}, {"description": "x"}, {"policy": {"exploration": 0.5}}],
    ids=lambda c: next(iter(c)),
)
def test_a_verdict_on_another_specification_is_none(
    gated: Peer, client: BanditClient, changed: dict[str, object]
):
    gated.create("welcome", start=False)
    assert not client.submit_verdict(verdict(**changed)).matches
    assert "no verdict" in refused(gated)


def test_of_two_verdicts_the_newest_counts(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False)
    client.submit_verdict(verdict())
    client.submit_verdict(verdict(FAILS))
    assert "stops it" in refused(gated)
    client.submit_verdict(verdict())
    assert start(gated).state == pb.STATE_RUNNING


def test_the_canonical_text_counts_and_not_how_it_was_written(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False, gate={"regret": 0.05}, groups={"random": 0.1})
    assert client.submit_verdict(verdict()).matches
    assert start(gated).state == pb.STATE_RUNNING


def test_a_paused_experiment_resumes_without_a_verdict(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False)
    client.submit_verdict(verdict())
    start(gated)
    client.pause_experiment("welcome")
    client.submit_verdict(verdict(FAILS))
    assert start(gated).state == pb.STATE_RUNNING


# --- overrides --------------------------------------------------------------------------


def test_an_override_starts_and_is_in_the_audit_log(gated: Peer):
    gated.create("welcome", start=False)
    assert start(gated, override="the sale begins today").state == pb.STATE_RUNNING
    told = entries(gated)
    assert [e.action for e in told] == [
        "experiment.create", "experiment.override", "experiment.start",
    ]  # fmt: skip
    assert told[1].reason == "the sale begins today"
    assert "no verdict" in json.loads(told[1].after)["started_with"]


def test_an_override_that_is_not_needed_is_not_noted(gated: Peer, client: BanditClient):
    client.submit_verdict(verdict())
    gated.create("welcome", start=False)
    start(gated, override="to be safe")
    assert "experiment.override" not in [e.action for e in entries(gated)]


def test_a_verdict_may_be_overridden_with_a_reason(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False)
    client.submit_verdict(verdict(FAILS), override="agreed with the board")
    assert start(gated).state == pb.STATE_RUNNING
    assert entries(gated)[1].reason == "agreed with the board"
    assert client.get_verdict("welcome").verdict.override == "agreed with the board"


def test_nothing_to_override_is_refused(gated: Peer):
    request = pb.SubmitVerdictRequest(
        verdict=message(verdict()), override="to be safe", request_id="r"
    )
    found = refusal(gated.experiments.SubmitVerdict, request)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, "override")


@pytest.mark.parametrize("override", ["x" * 501, "x" * 10**6, "  \n\t", "a\0b"])
def test_an_override_that_is_no_reason_starts_nothing(gated: Peer, override: str):
    gated.create("welcome", start=False)
    request = pb.StartExperimentRequest(name="welcome", override=override)
    assert refusal(gated.experiments.StartExperiment, request).field == "override"
    stored = pb.SubmitVerdictRequest(
        verdict=message(verdict(FAILS)), override=override, request_id="r"
    )
    assert refusal(gated.experiments.SubmitVerdict, stored).field == "override"
    assert gated.experiment("welcome").state == pb.STATE_DRAFT
    assert [entry.action for entry in entries(gated)] == ["experiment.create"]


# --- edits of what has been started -----------------------------------------------------


def edited(**fields: str) -> dict[str, str]:
    return {"name": "welcome", "reason": "a test", "request_id": str(fields), **fields}


def level(peer: Peer, name: str, **fields: str) -> pb.Experiment:
    request = pb.AddLevelRequest(
        factor="variant", level=pb.Level(name=name), **edited(request_id=name, **fields)
    )
    return peer.experiments.AddLevel(request).experiment


def exploring(peer: Peer, number: float, **fields: str) -> pb.Experiment:
    request = pb.UpdateExperimentRequest(
        spec=pb.ExperimentSpec(policy=pb.Policy(exploration=number)),
        update_mask=FieldMask(paths=["policy.exploration"]),
        **edited(request_id=f"explore {number}", **fields),
    )
    return peer.experiments.UpdateExperiment(request).experiment


def test_an_edit_of_a_running_experiment_needs_a_verdict(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False)
    client.submit_verdict(verdict())
    start(gated)
    known = gated.experiment("welcome")
    for edit in (lambda: level(gated, "poem"), lambda: exploring(gated, 0.5)):
        found = refusal(edit)
        assert (found.code, found.field) == (grpc.StatusCode.FAILED_PRECONDITION, "name")
        assert "no verdict" in found.message
        assert "edit it with an override" in found.message
    assert gated.experiment("welcome") == known
    before = len(entries(gated))
    client.submit_verdict(verdict(policy={"exploration": 0.5}))
    assert exploring(gated, 0.5).spec.policy.exploration == 0.5
    told = entries(gated)[before:]
    assert [e.action for e in told] == ["experiment.verdict", "experiment.update"]
    assert client.get_verdict("welcome").verdict.verdict.passed
    variants = [{"name": "short"}, {"name": "long"}, {"name": "poem", "generation": 1}]
    new = {"policy": {"exploration": 0.5}, "actions": {**SPEC["actions"], "variants": variants}}
    spec = spec_file.from_data({**SPEC, **new})
    floor = {"floor": gated.experiment("welcome").spec.policy.floor}  # of fewer actions, it stays
    assert spec.full_policy.floor < floor["floor"]
    new["policy"] |= floor
    client.submit_verdict(verdict(**new))
    assert len(level(gated, "poem").spec.actions.variants) == 3


def test_stopping_never_waits_for_a_verdict(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False)
    client.submit_verdict(verdict())
    start(gated)
    client.retire_level("welcome", "variant", "long", reason="complaints")
    spec = pb.ExperimentSpec(description="only short ones")
    gated.experiments.UpdateExperiment(
        pb.UpdateExperimentRequest(
            spec=spec, update_mask=FieldMask(paths=["description"]), **edited(request_id="words")
        )
    )
    back = pb.UpdateExperimentRequest(
        spec=ParseDict({"actions": SPEC["actions"]}, pb.ExperimentSpec()),
        update_mask=FieldMask(paths=["actions.variants"]),
        **edited(request_id="back"),
    )
    assert "no verdict" in refusal(gated.experiments.UpdateExperiment, back).message
    back.override = "the complaints were of another message"
    made = gated.experiments.UpdateExperiment(back).experiment
    assert not any(one.retired for one in made.spec.actions.variants)


def test_a_verdict_that_stops_stops_an_edit_too(gated: Peer, client: BanditClient):
    client.submit_verdict(verdict())
    gated.create("welcome")
    client.submit_verdict(verdict(FAILS, policy={"exploration": 0.0}))
    assert "a verdict that stops it (exploration)" in refusal(exploring, gated, 0.0).message
    assert refusal(exploring, gated, 0.0, override=" ").field == "override"
    exploring(gated, 0.0, override="a quiet week")
    told = entries(gated)[-2:]
    assert [e.action for e in told] == ["experiment.override", "experiment.update"]
    assert told[0].reason == "a quiet week"
    assert "exploration" in json.loads(told[0].after)["edited_with"]


def test_a_draft_is_edited_freely_and_its_start_asks_for_the_new_one(
    gated: Peer, client: BanditClient
):
    gated.create("welcome", start=False)
    client.submit_verdict(verdict())
    exploring(gated, 0.5)
    assert "no verdict" in refused(gated)
    client.submit_verdict(verdict(policy={"exploration": 0.5}))
    assert start(gated).state == pb.STATE_RUNNING


def test_only_admins_edit_and_no_tenant_edits_anothers(tmp_path: Path):
    with Peer(tmp_path, auth="tokens") as peer:
        admin, reader = (make_token(peer, [role])[1] for role in (Role.ADMIN, Role.READ))
        other = make_token(peer, [Role.ADMIN], tenant="other")[1]
        create(Bearer(peer, admin), "welcome")
        requests = {
            "AddLevel": pb.AddLevelRequest(
                factor="variant", level=pb.Level(name="poem"), **edited(request_id="a")
            ),
            "RetireLevel": pb.RetireLevelRequest(
                factor="variant", level="long", **edited(request_id="b")
            ),
            "UpdateExperiment": pb.UpdateExperimentRequest(
                spec=pb.ExperimentSpec(description="x"),
                update_mask=FieldMask(paths=["description"]),
                **edited(request_id="c"),
            ),
        }
        for method, request in requests.items():
            path = f"ExperimentService/{method}"
            found = refusal(Bearer(peer, reader).call, path, request)
            assert found.code is grpc.StatusCode.PERMISSION_DENIED
            found = refusal(Bearer(peer, other).call, path, request)
            assert found.code is grpc.StatusCode.NOT_FOUND
            unheard = type(request)()
            unheard.CopyFrom(request)
            unheard.name = "unheard"
            absent = refusal(Bearer(peer, other).call, path, unheard)
            same = found._replace(message=found.message.replace("welcome", "unheard"))
            assert absent == same
            made = Bearer(peer, admin).call(path, request)
            assert made.revision.who == "tester"


# --- keeping verdicts -------------------------------------------------------------------


def message(of: Verdict) -> pb.Verdict:
    return verdict_messages.write(of)


def test_a_verdict_is_given_back_as_it_was(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False)
    nothing = client.get_verdict("welcome")
    assert not nothing.HasField("verdict")
    assert nothing.spec_hash == verdict().spec_hash
    client.submit_verdict(verdict(HOLDS, FAILS))
    found = client.get_verdict("welcome").verdict
    assert found.verdict == message(verdict(HOLDS, FAILS))
    assert not found.verdict.checks[1].HasField("value")
    assert (found.who, found.override) == ("anonymous", "")
    assert found.at.ToMicroseconds() == gated.clock.now


def test_verdicts_survive_a_restart(gated: Peer, client: BanditClient):
    gated.create("welcome", start=False)
    client.submit_verdict(verdict())
    gated.restart()
    assert start(gated).state == pb.STATE_RUNNING


def test_a_repeated_request_stores_one_verdict(gated: Peer, client: BanditClient):
    first = client.submit_verdict(verdict(), request_id="one")
    assert client.submit_verdict(verdict(), request_id="one") == first
    assert len(entries(gated, "")) == 1
    other = pb.SubmitVerdictRequest(verdict=message(verdict(FAILS)), request_id="one")
    found = refusal(gated.experiments.SubmitVerdict, other)
    assert (found.code, found.field) == (grpc.StatusCode.ALREADY_EXISTS, "request_id")


def test_what_calls_itself_passed_and_is_not_is_refused(gated: Peer):
    lying = message(verdict(FAILS))
    lying.passed = True
    request = pb.SubmitVerdictRequest(verdict=lying, request_id="r")
    found = refusal(gated.experiments.SubmitVerdict, request)
    assert (found.code, found.field) == (grpc.StatusCode.INVALID_ARGUMENT, "verdict.passed")


def test_only_admins_submit_and_no_tenant_sees_anothers(tmp_path: Path):
    with Peer(tmp_path, auth="tokens", gate="required") as peer:
        admin, reader = (make_token(peer, [role])[1] for role in (Role.ADMIN, Role.READ))
        other = make_token(peer, [Role.ADMIN], tenant="other")[1]
        request = pb.SubmitVerdictRequest(verdict=message(verdict()), request_id="r")
        for method in ("SubmitVerdict", "StartExperiment"):
            asked = request if method == "SubmitVerdict" else pb.StartExperimentRequest()
            found = refusal(Bearer(peer, reader).call, f"ExperimentService/{method}", asked)
            assert found.code is grpc.StatusCode.PERMISSION_DENIED
        Bearer(peer, other).call("ExperimentService/SubmitVerdict", request)
        with pytest.raises(grpc.RpcError, match="no verdict"):
            create(Bearer(peer, admin), "welcome")
        Bearer(peer, admin).call("ExperimentService/SubmitVerdict", request)
        Bearer(peer, admin).call(
            "ExperimentService/StartExperiment", pb.StartExperimentRequest(name="welcome")
        )
        security = Security(token=admin)
        with BanditClient(f"127.0.0.1:{peer.server.port}", security=security) as mine:
            assert mine.get_verdict("welcome").verdict.who == "tester"
            assert [e.action for e in mine.audit_entries(experiment="welcome")].count(
                "experiment.verdict"
            ) == 1


def test_a_server_may_be_told_to_do_without(tmp_path: Path):
    with Peer(tmp_path, gate="off") as peer:
        peer.create("welcome", start=False)
        assert start(peer, override="not needed").state == pb.STATE_RUNNING


def test_the_gate_is_required_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BANDIT_GATE", raising=False)
    assert Settings().gate == "required"


def test_another_limit_is_another_specification():
    spec = spec_file.from_data(SPEC)
    other = replace(spec, gate=Gate(regret=0.1))
    assert spec_file.digest(spec) != spec_file.digest(other)
    assert spec.model_id == other.model_id


# --- the command ------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["", "agreed with the board"])
def test_validating_stores_a_verdict_that_a_start_asks_for(tmp_path: Path, override: str):
    """The gate stops a greedy policy; without a reason it does not start, with one it does."""
    examples = ROOT / "sims/examples/gate"
    text = (examples / "stop-greedy.toml").read_text()
    path = tmp_path / "stop-greedy.toml"
    path.write_text(text.replace("customers = 4000", "customers = 500").replace("= 8", "= 5"))
    world = examples / "stop-greedy.world.toml"
    with Peer(tmp_path, gate="required") as peer:
        address = f"127.0.0.1:{peer.server.port}"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "server", "validate", str(path), "--world", str(world)),
                *("--address", address, "--override", override),
            ],
            cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == (0 if override else 1), done.stdout + done.stderr
        assert "stopped by exploration" in done.stdout
        with BanditClient(address, timeout=20.0) as client:
            client.create_experiment(spec_file.parse(path.read_text(), "toml"))
            found = client.get_verdict("stop-greedy")
            assert found.verdict.verdict.spec_hash == found.spec_hash
            assert found.verdict.override == override
            assert [c.name for c in found.verdict.verdict.checks if not c.passed] == ["exploration"]
            if override:
                assert client.start_experiment("stop-greedy").state == pb.STATE_RUNNING
            else:
                with pytest.raises(StateError, match="exploration"):
                    client.start_experiment("stop-greedy")


def send(path: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["verdicts", "send", str(path), *options])


@pytest.mark.parametrize(
    ("checks", "override", "status"),
    [((HOLDS,), "", 0), ((HOLDS, FAILS), "", 1), ((HOLDS, FAILS), "agreed", 0)],
)
def test_a_verdict_in_a_file_can_be_sent_later(
    gated: Peer,
    client: BanditClient,
    tmp_path: Path,
    checks: tuple[Check, ...],
    override: str,
    status: int,
):
    path = tmp_path / "verdict.json"
    verdicts.write(verdict(*checks), path)
    address = f"127.0.0.1:{gated.server.port}"
    done = send(path, "--address", address, "--override", override)
    assert done.exit_code == status, done.output
    assert "stored on" in done.output
    assert done.output.splitlines()[-1].startswith(
        "verdict: passed" if len(checks) == 1 else "verdict: stopped by exploration"
    )
    gated.create("welcome", start=False)
    found = client.get_verdict("welcome").verdict
    assert verdict_messages.read(found.verdict) == verdict(*checks)
    assert found.override == override
    if status:
        assert "stops it" in refused(gated)
    else:
        assert start(gated).state == pb.STATE_RUNNING


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda data: data.update(passed=True), "the checks say otherwise"),
        (lambda data: data.pop("passed"), "is no verdict"),
        (lambda data: data.update(spec_hash="0"), "spec_hash"),
        (lambda data: data["checks"][0].update(value="much"), "checks.0.value"),
        (lambda data: data["checks"][0].update(value=math.nan), "checks.0"),
        (lambda data: data["checks"][0].pop("name"), "checks.0.name"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.update(checks=[]), "checks"),
    ],
)
def test_a_file_that_is_no_verdict_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
):
    path = tmp_path / "verdict.json"
    verdicts.write(verdict(HOLDS, FAILS), path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    done = send(path, "--address", "127.0.0.1:1")  # it does not come so far
    assert done.exit_code == 2
    assert str(path) in done.stderr
    assert told in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"[1]", b"[" * 5_000])
def test_what_can_not_be_read_is_refused(tmp_path: Path, content: bytes | None):
    path = tmp_path / "verdict.json"
    if content is not None:
        path.write_bytes(content)
    done = send(path)
    assert (done.exit_code, "Traceback" in done.output) == (2, False)
    assert str(path) in done.stderr
