"""``banditctl update``, ``levels`` and ``experiments spec``, as a user types them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from server.commands import run
from server.pb import bandit_pb2 as pb
from tests.server.harness import Clock, Peer
from tests.server.test_revising import NAME, add, play, retire

Banditctl = Callable[..., tuple[int, str, str]]
WHY = ("--reason", "spring is here")


@pytest.fixture
def banditctl(
    peer: Peer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Banditctl:
    """Give the command line, in a folder of its own, with the module's server to call."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("BANDIT_ADDRESS", f"127.0.0.1:{peer.server.port}")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["banditctl", *arguments])
        try:
            status = run()
        except SystemExit as end:
            status = int(end.code or 0)
        return (status, *capsys.readouterr())

    return call


def test_levels_are_added_listed_and_retired(banditctl: Banditctl, peer: Peer, name: str):
    status, out, err = banditctl("levels", "add", name, "variant", "poem", *WHY)
    assert (status, err) == (0, "")
    assert f"'{name}' has revision 2; it decides from snapshot 1 on" in out
    assert "poem" in out
    status, out, _ = banditctl("levels", "retire", name, "variant", "long", *WHY)
    assert status == 0
    assert "retired" in out
    status, out, _ = banditctl("levels", "list", name)
    lines = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "retired" in lines["long"]
    assert "in use" in lines["poem"]
    assert {"short", "email", "push", "now"} <= set(lines)
    request = pb.ListAuditEntriesRequest(name=name)
    newest = peer.experiments.ListAuditEntries(request).entries[0]
    assert (newest.action, newest.reason) == ("experiment.retire_level", "spring is here")


def test_a_level_with_a_time_or_attributes(banditctl: Banditctl, peer: Peer):
    slots = [{"name": "morning", "time": "08:00"}, {"name": "noon", "time": "12:00"}]
    variants = [{"name": n, "attributes": {"length": i, "warmth": i}} for i, n in enumerate("xy")]
    actions = {"variants": variants, "channels": [{"name": "email"}], "slots": slots}
    name = peer.create("slotted", actions=actions, fallback=None)
    for attributes in ([], ["--attribute", "length=0.5"]):
        status, _, err = banditctl("levels", "add", name, "variant", "z", *attributes, *WHY)
        assert status == 1
        assert "level.attributes" in err
    both = ("--attribute", "length=0.5", "--attribute", "warmth=-1")
    assert banditctl("levels", "add", name, "variant", "z", *both, *WHY)[0] == 0
    assert banditctl("levels", "add", name, "slot", "night", "--time", "22:30", *WHY)[0] == 0
    found = peer.experiment(name).spec.actions
    assert dict(found.variants[2].attributes) == {"length": 0.5, "warmth": -1.0}
    assert found.slots[2].time == "22:30"
    for wrong in ("length", "=1", "length=x", "length="):
        given = ("--attribute", wrong)
        status, _, err = banditctl("levels", "add", name, "variant", "w", *given, *WHY)
        assert (status, "is not NAME=NUMBER" in err) == (1, True)


def test_a_specification_goes_out_and_comes_back_changed(
    banditctl: Banditctl, peer: Peer, name: str
):
    status, out, err = banditctl("experiments", "spec", name)
    assert (status, err) == (0, "")
    spec = json.loads(out)
    assert spec["policy"]["exploration"] == 0.35
    status, out, _ = banditctl("update", name, "--spec", write(spec), *WHY)
    assert status == 0
    assert "Changed" not in out
    assert "has revision 1" in out
    spec["policy"]["exploration"] = 0.2
    spec["description"] = "a calm one"
    spec["actions"]["variants"].append({"name": "poem", "generation": 1})
    status, out, _ = banditctl("update", name, "--spec", write(spec), *WHY)
    assert status == 0
    for told in ("policy.exploration", "0.35", "0.2", 'actions.variants["poem"]', "a calm one"):
        assert told in out
    assert peer.experiment(name).spec.description == "a calm one"
    spec["policy"]["exploration"] = 0.9
    spec["description"] = "a wild one"
    only = ("--only", "policy.exploration")
    assert banditctl("update", name, "--spec", write(spec), *only, *WHY)[0] == 0
    found = peer.experiment(name).spec
    assert (found.description, found.policy.exploration) == ("a calm one", 0.9)
    assert peer.experiment(name).etag.endswith("-4")


def write(spec: dict[str, object]) -> str:
    Path("spec.json").write_text(json.dumps(spec))
    return "spec.json"


def test_the_same_request_id_changes_nothing_twice(banditctl: Banditctl, peer: Peer, name: str):
    once = ("levels", "add", name, "variant", "poem", *WHY, "--request-id", "mine")
    assert banditctl(*once)[0] == 0
    status, out, _ = banditctl(*once)
    assert status == 0
    assert "has revision 2" in out
    status, _, err = banditctl("levels", "add", name, "variant", "p", *WHY, "--request-id", "mine")
    assert (status, "used before" in err) == (1, True)
    assert len(peer.experiment(name).spec.actions.variants) == 3


def test_a_log_with_edits_is_verified_exported_and_decided_again(
    banditctl: Banditctl, tmp_path: Path
):
    with Peer(tmp_path, clock=Clock()) as peer:
        peer.create(NAME)
        play(peer, "first")
        add(peer, "poem")
        play(peer, "second")
        retire(peer, "long")
        play(peer, "third")
    status, out, err = banditctl("verify")
    assert (status, err) == (0, "")
    assert "5 snapshots equal their fold bit for bit, 36 decisions repeated" in out
    files = ("log.parquet", "learned.parquet")
    assert banditctl("export", NAME, files[0], "--learned", files[1])[0] == 0
    status, out, err = banditctl("rerun", *files)
    assert (status, err) == (0, "")
    assert "rerun: 36 of 36 decisions come out again bit for bit, 5 snapshots" in out


def test_what_is_wrong_is_told_in_a_line(banditctl: Banditctl, name: str):
    spec = json.loads(banditctl("experiments", "spec", name)[1])
    spec["outcome"]["window"] = 5
    for arguments, told in (
        (("update", name, "--spec", write(spec), *WHY), "error: spec.outcome: can not change"),
        (("update", name, "--spec", "none.toml", *WHY), "error: none.toml: can not be read"),
        (("update", name, "--spec", "spec.json", "--only", "x", *WHY), "is no path"),
        (("levels", "retire", name, "variant", "unheard", *WHY), "error: level: no variant"),
        (("levels", "retire", name, "colour", "red", *WHY), "error: factor: must be one of"),
        (("levels", "retire", name, "variant", "short", *WHY), "pause the experiment, or name"),
        (("levels", "list", "unheard"), "error: name: no experiment 'unheard'"),
    ):
        status, _, err = banditctl(*arguments)
        assert status == 1
        assert told in err
        assert len(err.splitlines()) == 1
    assert banditctl("levels", "retire", name, "variant", "long")[0] == 2  # why is missing
