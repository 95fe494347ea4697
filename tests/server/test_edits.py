"""What edits of a specification take over, and what is refused, with the path of the field."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from server.pb import bandit_pb2 as pb
from tests.server.harness import SPEC, Peer, refusal
from tests.server.test_revising import GROUPS, NAME, add, findings, play, retire, update, variants

# --- field masks --------------------------------------------------------------------------


def test_a_mask_takes_over_what_it_names(still: Peer):
    still.create(NAME, description="old", policy={"exploration": 0.7, "draws": 64})
    spec = {"description": "new", "policy": {"exploration": 0.2}, "groups": {"random": 0.5}}
    update(still, ["policy.exploration"], spec)
    found = still.experiment(NAME).spec
    assert (found.description, found.policy.exploration, found.policy.draws) == ("old", 0.2, 64)
    update(still, ["description", "groups"], spec)
    found = still.experiment(NAME).spec
    assert (found.description, found.policy.draws, found.groups.random) == ("new", 64, 0.5)
    update(still, ["policy.exploration", "description"], {})
    found = still.experiment(NAME).spec
    assert (found.description, found.policy.exploration) == ("", 0.35)
    rules = [{"variant": "long", "channel": "push", "reason": "too long"}]
    update(still, "actions.exclusions", {"actions": {"exclusions": rules}})
    assert len(still.experiment(NAME).spec.actions.exclusions) == 1
    update(still, "fallback", {})
    assert not still.experiment(NAME).spec.HasField("fallback")
    play(still, "after")
    findings(still)


def test_a_whole_specification_takes_the_place_of_the_old_one(still: Peer):
    still.create(NAME, description="old", groups=GROUPS)
    spec = MessageToDict(still.experiment(NAME).spec, preserving_proto_field_name=True)
    spec["description"] = "new"
    spec["groups"] = {"random": 0.3}
    spec["actions"]["variants"].append({"name": "poem", "generation": 1})
    spec.pop("name")
    for request_id, paths in (("none", []), ("star", ["*"])):
        update(still, paths, spec, request_id=request_id)
        found = still.experiment(NAME).spec
        assert (found.name, found.description, found.groups.random) == (NAME, "new", 0.3)
    assert variants(still)[2] == ("poem", 1, False)


@pytest.mark.parametrize(
    ("path", "field", "told"),
    [
        ("nonsense", "update_mask.paths[1]", "'nonsense' is no path"),
        ("policy.nonsense", "update_mask.paths[1]", "here may stand kind, posterior"),
        ("description.x", "update_mask.paths[1]", "goes on behind description"),
        ("actions.variants.name", "update_mask.paths[1]", "goes on behind variants"),
        ("actions.variants[0]", "update_mask.paths[1]", "is no path"),
        ("", "update_mask.paths[1]", "is no path"),
        ("policy.", "update_mask.paths[1]", "is no path"),
    ],
)
def test_a_path_that_is_none(peer: Peer, name: str, path: str, field: str, told: str):
    before = peer.experiment(name)
    refused = refusal(update, peer, ["description", path], {"description": "x"}, name=name)
    assert (refused.code, refused.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert told in refused.message
    assert peer.experiment(name) == before


# --- refusals -----------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"name": "other"}, "spec.name"),
    "context": ({"context": SPEC["context"][1:]}, "spec.context"),
    "outcome": ({"outcome": {"window": 60, "rewards": [{"name": "click"}]}}, "spec.outcome"),
    "gone": (
        {"actions": {"variants": [{"name": "short"}], "channels": SPEC["actions"]["channels"]}},
        "spec.actions.variants",
    ),
    "moved": (
        {"actions": {**SPEC["actions"], "variants": SPEC["actions"]["variants"][::-1]}},
        "spec.actions.variants[0]",
    ),
    "old generation": (
        {
            "actions": {
                **SPEC["actions"],
                "variants": [{"name": n} for n in ("short", "poem", "long")],
            }
        },
        "spec.actions.variants[1].generation",
    ),
    "changed level": (
        {
            "actions": {
                **SPEC["actions"],
                "slots": [{"name": "now", "time": "12:00"}],
            }
        },
        "spec.actions.slots[0].time",
    ),
    "attributes": (
        {
            "actions": {
                **SPEC["actions"],
                "channels": [{"name": n, "attributes": {"cost": 1}} for n in ("email", "push")],
            }
        },
        "spec.actions.channels[0].attributes",
    ),
    "posterior": ({"policy": {"posterior": "beta_bernoulli"}}, "spec.policy.posterior"),
    "half life": ({"policy": {"half_life": 60}}, "spec.policy.half_life"),
    "fourier": ({"policy": {"fourier": {"features": 8}}}, "spec.policy.fourier"),
    "terms": ({"policy": {"terms": [{"of": "context:variant"}]}}, "spec.policy.terms"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_reset_or_reinterpret_is_refused(peer: Peer, name: str, kind: str):
    changes, field = REFUSED[kind]
    if kind == "posterior":
        clicks = {"window": 60, "aggregation": "max", "rewards": [{"name": "click"}]}
        name = peer.create(f"{name}-clicks"[-64:], outcome=clicks)
    before = peer.experiment(name)
    paths = list(changes) if kind != "posterior" else ["policy.posterior", "policy.terms"]
    refused = refusal(update, peer, paths, changes, name=name)
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT")
    assert refused.field == field, refused.message
    assert peer.experiment(name) == before


def calls(peer: Peer, name: str) -> dict[str, Callable[[], object]]:
    return {
        "level.name taken": lambda: add(peer, "long", name=name),
        "level.name": lambda: add(peer, {}, name=name),
        "level.name of a bad name": lambda: add(peer, "a\nb", name=name),
        "level.generation": lambda: add(peer, {"name": "x", "generation": 3}, name=name),
        "level.retired": lambda: add(peer, {"name": "x", "retired": True}, name=name),
        "level.time": lambda: add(peer, {"name": "x", "time": "18:00"}, name=name),
        "level.attributes": lambda: add(peer, {"name": "x", "attributes": {"a": 1}}, name=name),
        "factor": lambda: add(peer, "x", "colour", name=name),
        "factor to retire": lambda: retire(peer, "long", "colour", name=name),
        "level missing": lambda: retire(peer, "unheard", name=name),
        "level the fallback uses": lambda: retire(peer, "short", name=name),
        "level the last": lambda: retire(peer, "now", "slot", name=name),
        "reason": lambda: retire(peer, "long", name=name, reason=""),
        "reason too long": lambda: retire(peer, "long", name=name, reason="x" * 501),
        "request_id": lambda: retire(peer, "long", name=name, request_id=""),
        "name": lambda: retire(peer, "long", name="unheard"),
        "name missing": lambda: retire(peer, "long", name=""),
        "spec": lambda: peer.experiments.UpdateExperiment(
            pb.UpdateExperimentRequest(name=name, request_id="r", reason="r")
        ),
        "spec.outcome missing": lambda: update(peer, [], {"actions": SPEC["actions"]}, name=name),
        "update_mask.paths": lambda: update(peer, ["description"] * 101, {}, name=name),
    }


@pytest.mark.parametrize("what", calls(None, ""))  # type: ignore[arg-type]
def test_an_edit_that_is_refused(peer: Peer, name: str, what: str):
    before = peer.experiment(name)
    refused = refusal(calls(peer, name)[what])
    code = {
        "level.name taken": grpc.StatusCode.ALREADY_EXISTS,
        "level missing": grpc.StatusCode.NOT_FOUND,
        "name": grpc.StatusCode.NOT_FOUND,
    }.get(what, grpc.StatusCode.INVALID_ARGUMENT)
    assert (refused.code, refused.field) == (code, what.split()[0]), refused.message
    assert peer.experiment(name) == before
