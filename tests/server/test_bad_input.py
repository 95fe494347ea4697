"""Whatever is sent: a declared status with the field's path, nothing stored, still serving.

Three nets, from narrow to wide: a table of wrong values with the path each must be refused
with; every field of a valid request of every RPC set to every nasty value of its type; and
random bytes.
"""

import copy
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from server.pb import bandit_pb2 as pb
from server.status import STATUS
from tests.server.harness import SPEC, Peer, Refusal, decide_request, refusal, reward_request

DECLARED = {code for code, _ in STATUS.values()}
INVALID = grpc.StatusCode.INVALID_ARGUMENT
UNKNOWN = b"\xa2\x1f\x03abc"
"""Field number 500, which no message has."""

REQUESTS: dict[str, type[Message]] = {
    f"{service.name}/{method.name}": getattr(pb, method.input_type.name)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
MANY = [{"name": f"l{i}"} for i in range(1_001)]


class Target(NamedTuple):
    """A running experiment with one decision, and a valid request for every RPC."""

    peer: Peer
    decision_id: str
    valid: dict[str, Message]

    def send(self, method: str, data: bytes) -> bytes:
        return self.peer.raw(method)(data, timeout=30)

    def refuse(self, method: str, data: bytes) -> Refusal:
        """Send what must be refused; see that nothing was stored and the server lives."""
        before = self.stored()
        found = refusal(self.send, method, data)
        assert self.stored() == before
        return found

    def stored(self) -> tuple[int, list[str]]:
        """Read how much is stored; that this answers shows that the server is serving."""
        names = [e.spec.name for e in _listed(self.peer)]
        return self.peer.log_length("target"), names


def _listed(peer: Peer) -> list[pb.Experiment]:
    request = pb.ListExperimentsRequest(page_size=1_000)
    return list(peer.experiments.ListExperiments(request, timeout=30).experiments)


@pytest.fixture(scope="module")
def target(peer: Peer) -> Target:
    peer.create("target")
    one = peer.decide("target", "r0").decision_id
    rules = [{"variant": "long", "channel": "push", "slot": "now", "reason": "quiet"}]
    values = {
        "age": {"number": 41},
        "segment": {"category": "new"},
        "has_app": {"flag": True},
        "hour": {"number": 3},
    }
    decide = decide_request(
        "target", "fresh", context={"values": values}, exclusions=rules, time_zone="Europe/Berlin"
    )
    reward = reward_request("target", "fresh", one)
    reward.occurred_at.GetCurrentTime()
    by_name = {"name": "target", "etag": ""}
    rank = pb.RankRequest.FromString(decide.SerializeToString())
    rank.count = 1
    edit = {"name": "target", "request_id": "fresh", "reason": "a test"}
    valid = {
        "DecisionService/Decide": decide,
        "DecisionService/BatchDecide": pb.BatchDecideRequest(requests=[decide]),
        "DecisionService/Rank": rank,
        "DecisionService/RecordReward": reward,
        "DecisionService/BatchRecordRewards": pb.BatchRecordRewardsRequest(events=[reward]),
        "DecisionService/ConfirmExposure": pb.ConfirmExposureRequest(
            experiment="target",
            decision_id=one,
            event_id="fresh",
            exposed_at=Timestamp(seconds=1_700_000_000),
        ),
        "DecisionService/GetDecision": pb.GetDecisionRequest(experiment="target", decision_id=one),
        "ExperimentService/CreateExperiment": pb.CreateExperimentRequest(
            spec=ParseDict(FULL, pb.ExperimentSpec()), request_id="fresh"
        ),
        "ExperimentService/GetExperiment": pb.GetExperimentRequest(name="target"),
        "ExperimentService/ListExperiments": pb.ListExperimentsRequest(page_size=5),
        "ExperimentService/StartExperiment": pb.StartExperimentRequest(**by_name),
        "ExperimentService/PauseExperiment": pb.PauseExperimentRequest(**by_name),
        "ExperimentService/ArchiveExperiment": pb.ArchiveExperimentRequest(name="nobody"),
        "ExperimentService/GetReport": pb.GetReportRequest(name="target"),
        "ExperimentService/ListAuditEntries": pb.ListAuditEntriesRequest(page_size=5),
        "ExperimentService/Rollback": pb.RollbackRequest(
            name="target",
            to_snapshot=0,
            without_reporter="somebody",
            since=Timestamp(seconds=1_600_000_000),
            until=Timestamp(seconds=1_700_000_000),
            reason="a test",
            request_id="fresh",
        ),
        "ExperimentService/SubmitVerdict": pb.SubmitVerdictRequest(
            verdict=pb.Verdict(
                experiment="target",
                spec_hash="0" * 64,
                checks=[pb.Check(name="regret", source="a world", value=0.1, limit=0.05)],
                worlds=["a world"],
            ),
            override="a test",
            request_id="fresh",
        ),
        "ExperimentService/GetVerdict": pb.GetVerdictRequest(name="target"),
        "ExperimentService/UpdateExperiment": pb.UpdateExperimentRequest(
            spec=ParseDict({**SPEC, "name": "target"}, pb.ExperimentSpec()), **edit
        ),
        "ExperimentService/AddLevel": pb.AddLevelRequest(
            factor="variant", level=pb.Level(name="fresh"), **edit
        ),
        "ExperimentService/RetireLevel": pb.RetireLevelRequest(
            factor="variant", level="long", **edit
        ),
    }
    assert set(valid) == set(REQUESTS)
    return Target(peer, one, valid)


LISTS = {"ExperimentService/ListExperiments", "ExperimentService/ListAuditEntries"}
"""Methods that refuse nothing in an empty request."""

FULL: dict[str, Any] = {
    **SPEC,
    "name": "full",
    "description": "every field is set",
    "actions": {
        "variants": [{"name": "short"}, {"name": "long"}],
        "channels": [{"name": "email"}, {"name": "push"}],
        "slots": [{"name": "now"}, {"name": "late", "time": "21:00"}],
        "exclusions": [
            {"variant": "long", "channel": "push", "slot": "late", "reason": "not at night"}
        ],
    },
    "context": [
        {"name": "age", "kind": "number", "bounds": [18, 90], "scale": "linear", "outside": "clip"},
        {"name": "segment", "kind": "category", "levels": ["new"], "required": True},
        {"name": "hour", "kind": "cyclic", "period": 24},
    ],
    "outcome": {
        "rewards": [{"name": "click", "bounds": [0, 1], "weight": 1, "terminal": True}],
        "window": 60,
        "early": 1,
        "silence": "default",
        "default": 0,
        "aggregation": "max",
    },
    "policy": {
        "kind": "thompson_sampling",
        "posterior": "gaussian",
        "exploration": 1,
        "floor": 0.001,
        "draws": 64,
        "terms": [{"of": "context:variant", "prior_sd": 1}, {"of": "channel:slot"}],
        "noise": {"sd": 1},
    },
    "groups": {"random": 0.1, "baseline": 0.1, "no_contact": 0.1},
    "baseline": {"variant": "short", "channel": "email", "slot": "now"},
    "publishing": {"outcomes": 10, "seconds": 1, "max_age": 60},
}

# --- the table ------------------------------------------------------------------------------

NAN, INF = "NaN", "Infinity"
LONG = "x" * 100_000
WIDE = "\N{GRINNING FACE}" * 5_000

DECIDE = [
    ("experiment", "", "experiment"),
    ("experiment", "x" * 65, "experiment"),
    ("experiment", "a\0b", "experiment"),
    ("request_id", "", "request_id"),
    ("request_id", "x" * 129, "request_id"),
    ("request_id", WIDE, "request_id"),
    ("request_id", "a\0b", "request_id"),
    ("customer_id", "", "customer_id"),
    ("customer_id", "x" * 257, "customer_id"),
    ("customer_id", "a\0b", "customer_id"),
    ("context.values.agee", {"number": 1}, 'context.values["agee"]'),
    ("context.values." + "x" * 99, {"number": 1}, f'context.values["{"x" * 64}"]'),
    ("context.values.age", {"number": NAN}, 'context.values["age"]'),
    ("context.values.age", {"number": INF}, 'context.values["age"]'),
    ("context.values.hour", {"number": "-Infinity"}, 'context.values["hour"]'),
    ("context.values.age", {"category": "old"}, 'context.values["age"]'),
    ("context.values.age", {"flag": True}, 'context.values["age"]'),
    ("context.values.hour", {"flag": False}, 'context.values["hour"]'),
    ("context.values.segment", {"number": 1}, 'context.values["segment"]'),
    ("context.values.segment", {"category": "x" * 257}, 'context.values["segment"]'),
    ("context.values.has_app", {"number": 1}, 'context.values["has_app"]'),
    ("context.values.has_app", {"category": "true"}, 'context.values["has_app"]'),
    ("exclusions", [{"reason": "x"}], "exclusions[0]"),
    ("exclusions", [{"variant": "long"}], "exclusions[0].reason"),
    ("exclusions", [{"variant": "long", "reason": "x" * 201}], "exclusions[0].reason"),
    ("exclusions", [{"variant": "medium", "reason": "x"}], "exclusions[0].variant"),
    ("exclusions", [{"slot": LONG, "reason": "x"}], "exclusions[0].slot"),
    ("exclusions", [{"variant": "long", "reason": "x"}] * 1_001, "exclusions"),
    ("time_zone", "Mars/Olympus", "time_zone"),
    ("time_zone", "../../etc/passwd", "time_zone"),
    ("time_zone", "Europe/Berlin\0", "time_zone"),
    ("time_zone", LONG, "time_zone"),
]
REWARD = [
    ("experiment", "", "experiment"),
    ("experiment", LONG, "experiment"),
    ("event_id", "", "event_id"),
    ("event_id", "x" * 129, "event_id"),
    ("event_id", "a\0b", "event_id"),
    ("decision_id", "", "decision_id"),
    ("decision_id", "not-a-uuid", "decision_id"),
    ("decision_id", LONG, "decision_id"),
    ("name", "", "name"),
    ("name", "stolen", "name"),
    ("name", WIDE, "name"),
    ("value", NAN, "value"),
    ("value", INF, "value"),
    ("value", "-Infinity", "value"),
    ("value", 1.0000001, "value"),
    ("value", -0.5, "value"),
    ("value", 1e308, "value"),
]
SPECS = [
    ("name", "", "name"),
    ("name", "x" * 65, "name"),
    ("name", "a/b", "name"),
    ("name", "a\nb", "name"),
    ("name", "a\0b", "name"),
    ("description", "x" * 2_001, "description"),
    ("actions.variants", [], "actions.variants"),
    ("actions.variants", MANY, "actions.variants"),
    ("actions", {"variants": MANY[:200], "channels": MANY[:51]}, "actions"),
    ("actions.variants.1.name", "short", "actions.variants[1]"),
    ("actions.variants.1.name", LONG, "actions.variants[1].name"),
    ("actions.variants.0.time", "09:00", "actions.variants[0].time"),
    ("actions.slots.1.time", "25:00", "actions.slots[1].time"),
    ("actions.slots.1.time", "9 o'clock", "actions.slots[1].time"),
    ("actions.exclusions.0.variant", "medium", "actions.exclusions[0].variant"),
    ("actions.exclusions.0.reason", "", "actions.exclusions[0].reason"),
    ("actions.exclusions.0", {"reason": "x"}, "actions.exclusions[0]"),
    ("actions.exclusions", [{"slot": "late", "reason": "x"}] * 1_001, "actions.exclusions"),
    (
        "actions.exclusions",
        [{"variant": v, "reason": "x"} for v in ("short", "long")],
        "actions.exclusions",
    ),
    ("context", [{"name": f"f{i}", "kind": "flag"} for i in range(257)], "context"),
    ("context.1.name", "age", "context[1].name"),
    ("context.0.kind", "text", "context[0].kind"),
    ("context.0.bounds", [90, 18], "context[0].bounds"),
    ("context.0.bounds", [0, 1, 2], "context[0].bounds"),
    ("context.0.bounds", [0, NAN], "context[0].bounds[1]"),
    ("context.0.bounds", [0, INF], "context[0].bounds[1]"),
    ("context.0.scale", "cubic", "context[0].scale"),
    ("context.0.outside", "wrap", "context[0].outside"),
    ("context.0.levels", ["a"], "context[0].levels"),
    ("context.1.levels", [f"l{i}" for i in range(1_001)], "context[1].levels"),
    ("context.1.levels", ["a", "a"], "context[1].levels"),
    ("context.1.levels", ["x" * 257], "context[1].levels"),
    ("context.2.period", 0, "context[2].period"),
    ("context.2.period", NAN, "context[2].period"),
    ("outcome.rewards", [], "outcome.rewards"),
    ("outcome.rewards", [{"name": f"r{i}"} for i in range(65)], "outcome.rewards"),
    ("outcome.rewards", [{"name": "a"}, {"name": "a"}], "outcome.rewards"),
    ("outcome.rewards.0.bounds", [1, 0], "outcome.rewards[0].bounds"),
    ("outcome.rewards.0.bounds", [0, 1e300], "outcome.rewards[0].bounds"),
    ("outcome.rewards.0.weight", NAN, "outcome.rewards[0].weight"),
    ("outcome.rewards.0.weight", 1e300, "outcome.rewards[0].weight"),
    ("outcome.window", 0, "outcome.window"),
    ("outcome.window", -1, "outcome.window"),
    ("outcome.window", NAN, "outcome.window"),
    ("outcome.window", 1e12, "outcome.window"),
    ("outcome.early", -1, "outcome.early"),
    ("outcome.silence", "shout", "outcome.silence"),
    ("outcome.default", 1e300, "outcome.default"),
    ("outcome.aggregation", "median", "outcome.aggregation"),
    ("policy.kind", "oracle", "policy.kind"),
    ("policy.posterior", "cauchy", "policy.posterior"),
    ("policy.exploration", -1, "policy.exploration"),
    ("policy.exploration", NAN, "policy.exploration"),
    ("policy.floor", 1, "policy.floor"),
    ("policy.floor", 0.5, "policy.floor"),
    ("policy.draws", 15, "policy.draws"),
    ("policy.draws", 4_000_000_000, "policy.draws"),
    ("policy.terms", [{"of": "weather"}], "policy.terms[0].of"),
    ("policy.terms", [{"of": "variant", "prior_sd": NAN}], "policy.terms[0].prior_sd"),
    ("policy.terms", [{"of": "variant"}] * 17, "policy.terms"),
    ("policy.terms", [{"of": "variant"}], "policy.terms"),
    ("policy.noise.sd", 0, "policy.noise.sd"),
    ("policy.noise.sd", INF, "policy.noise.sd"),
    ("policy.successes", -1, "policy.successes"),
    ("policy.kind", "fixed", "policy.action"),
    ("policy.action", {"variant": "long", "channel": "email"}, "policy.action"),
    ("groups.random", 1.5, "groups.random"),
    ("groups.random", NAN, "groups.random"),
    ("groups.baseline", -0.1, "groups.baseline"),
    ("groups", {"random": 0.6, "baseline": 0.6}, "groups"),
    ("baseline.variant", "medium", "baseline.variant"),
    ("baseline", {"variant": "long", "channel": "push", "slot": "late"}, "baseline"),
    ("fallback.slot", "never", "fallback.slot"),
    ("publishing.outcomes", 0, "publishing.outcomes"),
    ("publishing.outcomes", 4_000_000_000, "publishing.outcomes"),
    ("publishing.seconds", 0, "publishing.seconds"),
    ("publishing.seconds", NAN, "publishing.seconds"),
    ("publishing.max_age", 0.5, "publishing.max_age"),
    ("publishing.max_age", NAN, "publishing.max_age"),
    ("gate.regret", -1, "gate.regret"),
    ("gate.leak", NAN, "gate.leak"),
    ("gate.customers", 1, "gate.customers"),
    ("gate.replications", 4_000_000_000, "gate.replications"),
]
VERDICTS = [
    ("request_id", "", "request_id"),
    ("override", "x" * 501, "override"),
    ("override", "a\0b", "override"),
    ("verdict.experiment", "", "verdict.experiment"),
    ("verdict.experiment", LONG, "verdict.experiment"),
    ("verdict.spec_hash", "", "verdict.spec_hash"),
    ("verdict.spec_hash", "F" * 64, "verdict.spec_hash"),
    ("verdict.passed", True, "verdict.passed"),
    ("verdict.checks", [], "verdict.checks"),
    ("verdict.checks", [{"name": "x"}] * 1_001, "verdict.checks"),
    ("verdict.checks.0.name", "", "verdict.checks[0].name"),
    ("verdict.checks.0.name", LONG, "verdict.checks[0].name"),
    ("verdict.checks.0.value", NAN, "verdict.checks[0].value"),
    ("verdict.checks.0.limit", INF, "verdict.checks[0].limit"),
    ("verdict.checks.0.bound", "about", "verdict.checks[0].bound"),
    ("verdict.checks.0.found", "a\0b", "verdict.checks[0].found"),
    ("verdict.checks.0.why", WIDE, "verdict.checks[0].why"),
    ("verdict.worlds", ["x"] * 101, "verdict.worlds"),
    ("verdict.worlds", [LONG], "verdict.worlds[0]"),
    ("verdict.log", LONG, "verdict.log"),
    ("verdict.seed", -1, "verdict.seed"),
]
EDITS = [
    ("name", "", "name"),
    ("name", LONG, "name"),
    ("request_id", "", "request_id"),
    ("request_id", "x" * 129, "request_id"),
    ("request_id", "a\0b", "request_id"),
    ("reason", "", "reason"),
    ("reason", "x" * 501, "reason"),
    ("reason", "a\0b", "reason"),
]
LEVELS = [
    ("override", "x" * 501, "override"),
    ("override", " \n", "override"),
    ("factor", "", "factor"),
    ("factor", LONG, "factor"),
    ("level", {}, "level.name"),
    ("level.name", LONG, "level.name"),
    ("level.name", "a/b", "level.name"),
    ("level.time", "09:00", "level.time"),
    ("level.attributes", {"length": 1}, "level.attributes"),
    ("level.attributes", {"length": NAN}, "level.attributes.length"),
    ("level.attributes", {f"a{i}": 1 for i in range(65)}, "level.attributes"),
    ("level.generation", 7, "level.generation"),
    ("level.retired", True, "level.retired"),
]
NAMED = [
    *("GetExperiment", "StartExperiment", "PauseExperiment", "ArchiveExperiment", "GetReport"),
    "GetVerdict",
]
TABLE = [
    *(("DecisionService/Decide", *row) for row in DECIDE),
    *(
        ("DecisionService/BatchDecide", f"requests.0.{path}", value, f"requests[0].{field}")
        for path, value, field in DECIDE
    ),
    *(("DecisionService/Rank", *row) for row in DECIDE),
    ("DecisionService/Rank", "request_id", "x" * 126, "request_id"),
    ("DecisionService/Rank", "count", 0, "count"),
    ("DecisionService/Rank", "count", 21, "count"),
    ("DecisionService/Rank", "count", 2**32 - 1, "count"),
    *(("DecisionService/RecordReward", *row) for row in REWARD),
    *(
        ("DecisionService/BatchRecordRewards", f"events.0.{path}", value, f"events[0].{field}")
        for path, value, field in REWARD
    ),
    ("DecisionService/BatchDecide", "requests", [], "requests"),
    ("DecisionService/BatchDecide", "requests", [{}] * 1_001, "requests"),
    ("DecisionService/BatchDecide", "requests", [{}], "requests[0].experiment"),
    ("DecisionService/BatchRecordRewards", "events", [], "events"),
    ("DecisionService/BatchRecordRewards", "events", [{}] * 1_001, "events"),
    ("DecisionService/BatchRecordRewards", "events", [{}], "events[0].experiment"),
    ("DecisionService/GetDecision", "experiment", "", "experiment"),
    ("DecisionService/GetDecision", "decision_id", "", "decision_id"),
    ("DecisionService/GetDecision", "decision_id", "7", "decision_id"),
    ("DecisionService/GetDecision", "decision_id", WIDE, "decision_id"),
    *(
        ("ExperimentService/CreateExperiment", f"spec.{path}", value, f"spec.{field}")
        for path, value, field in SPECS
    ),
    *(("ExperimentService/SubmitVerdict", *row) for row in VERDICTS),
    *(
        (f"ExperimentService/{method}", *row)
        for method in ("UpdateExperiment", "AddLevel", "RetireLevel")
        for row in EDITS
    ),
    *(("ExperimentService/AddLevel", *row) for row in LEVELS),
    ("ExperimentService/RetireLevel", "factor", "weather", "factor"),
    ("ExperimentService/RetireLevel", "level", "", "level"),
    ("ExperimentService/RetireLevel", "level", LONG, "level"),
    ("ExperimentService/UpdateExperiment", "override", "a\0b", "override"),
    ("ExperimentService/UpdateExperiment", "updateMask", "weather", "update_mask.paths[0]"),
    (
        "ExperimentService/UpdateExperiment",
        "updateMask",
        ",".join(["name"] * 101),
        "update_mask.paths",
    ),
    *(
        ("ExperimentService/UpdateExperiment", f"spec.{path}", value, f"spec.{field}")
        for path, value, field in SPECS
        if path.startswith(("description", "groups", "publishing", "gate", "policy.exploration"))
    ),
    (
        "ExperimentService/CreateExperiment",
        "spec.actions",
        {"channels": [{"name": "email"}]},
        "spec.actions.variants",
    ),
    ("ExperimentService/CreateExperiment", "request_id", "", "request_id"),
    ("ExperimentService/CreateExperiment", "request_id", "x" * 129, "request_id"),
    ("ExperimentService/CreateExperiment", "request_id", "a\0b", "request_id"),
    *((f"ExperimentService/{method}", "name", "", "name") for method in NAMED),
    *((f"ExperimentService/{method}", "name", LONG, "name") for method in NAMED),
    *((f"ExperimentService/{method}", "name", "a\0b", "name") for method in NAMED),
    ("ExperimentService/ListExperiments", "page_size", -1, "page_size"),
    ("ExperimentService/ListExperiments", "page_token", "no token", "page_token"),
    ("ExperimentService/ListExperiments", "page_token", WIDE, "page_token"),
    ("ExperimentService/ListAuditEntries", "page_size", -1, "page_size"),
    ("ExperimentService/ListAuditEntries", "page_token", "no token", "page_token"),
    ("ExperimentService/ListAuditEntries", "name", "x" * 65, "name"),
    ("ExperimentService/PauseExperiment", "reason", "x" * 501, "reason"),
    ("ExperimentService/PauseExperiment", "reason", "a\0b", "reason"),
]


ONE_ACTION = {"variants": [{"name": "short"}], "channels": [{"name": "email"}]}


def changed(message: Message, path: str, value: object) -> Message:
    """Give a copy with one value, by its path, set to another."""
    data = MessageToDict(message, preserving_proto_field_name=True)
    place: Any = data
    *parts, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    for part in parts:
        place = place[part] if isinstance(part, int) else place.setdefault(part, {})
    place[last] = value
    return ParseDict(data, type(message)())


def _label(value: object) -> str | None:
    return value[:40] if isinstance(value, str) else None


@pytest.mark.parametrize(("method", "path", "value", "field"), TABLE, ids=_label)
def test_a_wrong_value_is_refused_with_its_path(
    target: Target, method: str, path: str, value: object, field: str
):
    request = changed(target.valid[method], path, value)
    found = target.refuse(method, request.SerializeToString())
    assert found.code is INVALID
    assert found.field == field
    assert found.reason == "INVALID_INPUT"


@pytest.mark.parametrize(
    ("seconds", "nanos"),
    [(-1, 0), (10**15, 0), (-(2**63), 0), (2**63 - 1, 0), (0, -1), (0, 2**31 - 1), (10**11, 0)],
)
@pytest.mark.parametrize("method", ["RecordReward", "BatchRecordRewards"])
def test_an_instant_that_is_none(target: Target, method: str, seconds: int, nanos: int):
    request = copy.deepcopy(target.valid[f"DecisionService/{method}"])
    event = request.events[0] if method.startswith("Batch") else request
    event.occurred_at.seconds, event.occurred_at.nanos = seconds, nanos
    found = target.refuse(f"DecisionService/{method}", request.SerializeToString())
    assert (found.code, found.field.split(".")[-1]) == (INVALID, "occurred_at")


def test_a_required_field_that_is_missing(peer: Peer, target: Target):
    context = [{"name": "age", "kind": "number", "bounds": [0, 99], "required": True}]
    name = peer.create("demanding", context=context)
    for values in ({}, {"age": {}}):
        found = refusal(peer.decide, name, "r1", context={"values": values})
        assert (found.code, found.field) == (INVALID, 'context.values["age"]')
    assert peer.log_length(name) == 0
    assert target.stored()


def test_a_number_outside_bounds_that_reject(peer: Peer):
    context = [{"name": "age", "kind": "number", "bounds": [0, 99], "outside": "reject"}]
    name = peer.create("strict", context=context)
    found = refusal(peer.decide, name, "r1", context={"values": {"age": {"number": 99.5}}})
    assert (found.code, found.field) == (INVALID, 'context.values["age"]')
    assert peer.log_length(name) == 0


def test_several_errors_are_all_named(target: Target):
    request = pb.CreateExperimentRequest(request_id="r")
    request.spec.name = "nothing else"
    found = target.refuse("ExperimentService/CreateExperiment", request.SerializeToString())
    assert found.code is INVALID
    assert "actions: is required" in found.message
    assert "outcome: is required" in found.message


@pytest.mark.parametrize("letter", ["/", "\N{EURO SIGN}\0", "\N{GRINNING FACE}"])
def test_many_long_errors_still_reach_the_client(target: Target, letter: str):
    request = copy.deepcopy(target.valid["ExperimentService/CreateExperiment"])
    for i in range(900):
        request.spec.actions.variants.add(name=letter * 35 + str(i))
    found = target.refuse("ExperimentService/CreateExperiment", request.SerializeToString())
    assert (found.code, found.reason) == (INVALID, "INVALID_INPUT")


def test_no_specification_is_too_large_to_be_read_back(tmp_path: Path):
    """What was created once must not keep the server from ever starting again."""
    with Peer(tmp_path) as peer:
        name = peer.create("innocent")
        levels = [f"{i:04}" + "x" * 252 for i in range(1_000)]
        spec = peer.experiment(name).spec
        spec.name = "enormous"
        spec.ClearField("context")
        spec.ClearField("fallback")
        spec.actions.CopyFrom(ParseDict(ONE_ACTION, pb.ActionSpace()))
        for i in range(4):
            kept = levels[: 980 if i == 3 else 1_000]
            spec.context.add(name=f"f{i}", kind="category", levels=kept, required=True)
        request = pb.CreateExperimentRequest(spec=spec, request_id="enormous")
        try:
            peer.experiments.CreateExperiment(request)
        except grpc.RpcError as error:
            assert error.code() is INVALID, error.details()
            assert len(_listed(peer)) == 1
        peer.restart()
        assert peer.decide(name, "r1").sequence == 1


# --- every RPC ------------------------------------------------------------------------------

EMPTY_FIELD = {
    "ExperimentService/SubmitVerdict": "request_id",
    "DecisionService/BatchDecide": "requests",
    "DecisionService/BatchRecordRewards": "events",
    "ExperimentService/CreateExperiment": "request_id",
}


@pytest.mark.parametrize("method", sorted(set(REQUESTS) - LISTS))
def test_an_empty_request(target: Target, method: str):
    found = target.refuse(method, b"")
    first = "experiment" if method.startswith("Decision") else "name"
    assert (found.code, found.field) == (INVALID, EMPTY_FIELD.get(method, first))


GARBAGE = [
    b"garbage",
    b"\xff" * 100,
    b"\x0a\xff\xff\xff\xff\x0f",  # a length of 4 GB
    b"\x0a\x02\xff\xfe",  # no UTF-8
    b"\x0b" * 20_000,  # groups in groups
    bytes(10_000),
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("method", REQUESTS)
def test_bytes_that_are_no_message(target: Target, method: str, garbage: bytes):
    assert target.refuse(method, garbage).code is INVALID


@pytest.mark.parametrize("method", REQUESTS)
def test_a_message_that_was_cut_off(target: Target, method: str):
    data = target.valid[method].SerializeToString()
    assert target.refuse(method, data[:-1]).code is INVALID


@pytest.mark.parametrize("method", REQUESTS)
def test_a_message_that_is_too_large(target: Target, method: str):
    data = UNKNOWN[:2] + b"\xff\xff\xff\x03" + b"x" * (2**23 - 1)
    found = target.refuse(method, data)
    assert found.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def messages(message: Message) -> Iterator[Message]:
    """Give a message and all messages in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = list(value.values())
        else:
            inner = [value] if isinstance(value, Message) else list(value)
        for one in inner:
            if isinstance(one, Message):
                yield from messages(one)


@pytest.mark.parametrize("method", REQUESTS)
def test_unknown_fields_are_refused_at_every_depth(target: Target, method: str):
    request = copy.deepcopy(target.valid[method])
    for i in range(len(list(messages(request)))):
        mutant = copy.deepcopy(request)
        list(messages(mutant))[i].MergeFromString(UNKNOWN)
        found = target.refuse(method, mutant.SerializeToString())
        assert found.code is INVALID
        assert found.field.endswith("(field number 500)")


def test_the_path_of_an_unknown_field(target: Target):
    request = copy.deepcopy(target.valid["DecisionService/BatchDecide"])
    request.requests[0].context.values["age"].MergeFromString(UNKNOWN)
    found = target.refuse("DecisionService/BatchDecide", request.SerializeToString())
    assert found.field == 'requests[0].context.values["age"].(field number 500)'


# --- every field ----------------------------------------------------------------------------

TEXTS = ["", LONG, WIDE, "a\0b", "\n", "\N{GRINNING FACE}", "'; drop table decisions; --", "%s{}"]
NUMBERS = [math.nan, math.inf, -math.inf, 1e308, -1e308, 5e-324, 0.0, -0.0, -1.0]
NASTY: dict[int, list[object]] = {
    FieldDescriptor.CPPTYPE_STRING: list(TEXTS),
    FieldDescriptor.CPPTYPE_DOUBLE: list(NUMBERS),
    FieldDescriptor.CPPTYPE_INT32: [-(2**31), -1, 0, 2**31 - 1],
    FieldDescriptor.CPPTYPE_INT64: [-(2**63), -1, 0, 2**63 - 1],
    FieldDescriptor.CPPTYPE_UINT32: [0, 1, 2**32 - 1],
    FieldDescriptor.CPPTYPE_BOOL: [True, False],
}


def mutants(message: Message) -> Iterator[Callable[[Message], None]]:
    """Give ways to spoil a message, one field at a time, and all messages in it."""
    for i, part in enumerate(messages(message)):
        for field in part.DESCRIPTOR.fields:
            values = NASTY.get(field.cpp_type, [None])
            if field.is_repeated:
                values = [*values, "nothing", "a thousand and one"]
            for value in values:
                yield lambda top, i=i, field=field, value=value: spoil(
                    list(messages(top))[i], field, value
                )


def spoil(part: Message, field: FieldDescriptor, value: object) -> None:
    """Set one field to a value; a list to nothing, too much, or the value as its last."""
    if value is None or value == "nothing":
        part.ClearField(field.name)
    elif not field.is_repeated:
        setattr(part, field.name, value)
    elif field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = getattr(part, field.name)
        if field.message_type.fields_by_name["value"].message_type is None:
            entry[str(value)[:300]] = 1.0
        else:
            entry[str(value)[:300]].number = 1.0
    elif value == "a thousand and one":
        items = getattr(part, field.name)
        while items and len(items) < 1_001:
            items.extend(list(items)[: 1_001 - len(items)])
    elif field.message_type is None:
        getattr(part, field.name).append(value)


@pytest.mark.parametrize("method", REQUESTS)
def test_every_field_set_to_every_nasty_value(target: Target, method: str):
    """A value may be legal; if it is not, its refusal is a declared one and has a path."""
    valid = target.valid[method]
    refused = 0
    for i, mutate in enumerate(mutants(valid)):
        request = copy.deepcopy(valid)
        mutate(request)
        _freshen(request, f"{method[-20:]}{i}")
        before = target.peer.log_length("target")
        try:
            target.send(method, request.SerializeToString())
        except grpc.RpcError as error:
            found = _read(error)
            refused += 1
            assert found.code in DECLARED, (found, request)
            assert found.field, (found, request)
            assert target.peer.log_length("target") == before
    assert refused > 0 or method in LISTS


def _read(error: grpc.RpcError) -> Refusal:
    def raising() -> None:
        raise error

    return refusal(raising)


def _freshen(request: Message, one: str) -> None:
    """Give a request ids of its own, where it still has those of the valid one."""
    for part in messages(request):
        for name in ("request_id", "event_id"):
            if getattr(part, name, "") == "fresh":
                setattr(part, name, one)
        if isinstance(part, pb.ExperimentSpec) and part.name == "full":
            part.name = "".join(c if c.isalnum() else "-" for c in one)


# --- anything -------------------------------------------------------------------------------


def declared(target: Target, method: str, data: bytes) -> None:
    """Send anything: an answer, or a declared refusal."""
    try:
        target.send(method, data)
    except grpc.RpcError as error:
        assert error.code() in DECLARED, (method, data, error.code(), error.details())


@given(method=st.sampled_from(sorted(REQUESTS)), data=st.binary(max_size=200))
def test_random_bytes(target: Target, method: str, data: bytes):
    declared(target, method, data)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["set", "insert", "delete", "copy"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


@given(method=st.sampled_from(sorted(REQUESTS)), edits=EDITS)
def test_spoiled_bytes(target: Target, method: str, edits: list[tuple[str, float, int]]):
    data = bytearray(target.valid[method].SerializeToString())
    for kind, share, byte in edits:
        at = int(share * len(data))
        if kind == "set":
            data[at : at + 1] = bytes([byte])
        elif kind == "insert":
            data[at:at] = bytes([byte])
        elif kind == "delete":
            del data[at : at + byte % 8]
        else:
            data[at:at] = data[at : at + byte]
    declared(target, method, bytes(data))


@given(
    values=st.dictionaries(
        st.sampled_from(["age", "segment", "has_app", "hour"]) | st.text(max_size=5),
        st.builds(lambda v: {"number": v}, st.floats())
        | st.builds(lambda v: {"category": v}, st.text(max_size=20))
        | st.builds(lambda v: {"flag": v}, st.booleans())
        | st.just({}),
        max_size=6,
    ),
    zone=st.sampled_from(["", "Europe/Berlin", "UTC"]) | st.text(max_size=12),
    customer=st.text(max_size=20),
)
def test_random_contexts(target: Target, values: dict, zone: str, customer: str):
    request = pb.DecideRequest(experiment="target", request_id="r", customer_id=customer)
    request.request_id = f"random {hash(str((values, zone, customer)))}"
    request.time_zone = zone
    for field, value in values.items():
        request.context.values[field].SetInParent()
        for kind, one in value.items():
            setattr(request.context.values[field], kind, one)
    declared(target, "DecisionService/Decide", request.SerializeToString())


def test_after_all_this_the_server_serves(target: Target):
    peer = target.peer
    peer.experiments.StartExperiment(pb.StartExperimentRequest(name="target"))
    assert peer.decide("target", "r0").decision_id == target.decision_id
    peer.restart()
    assert peer.decide("target", "r0").decision_id == target.decision_id
