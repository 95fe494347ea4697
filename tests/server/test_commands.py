"""banditctl as a user runs it: in an empty folder, in processes of its own."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from server.client import Ask, BanditClient, Fact
from server.commands import run

ROOT = Path(__file__).parents[2]
PLAIN = {key: value for key, value in os.environ.items() if not key.startswith("BANDIT_")}
PYTHONPATH = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
ENVIRONMENT = {**PLAIN, "COLUMNS": "200", "PYTHONPATH": PYTHONPATH, "PYTHONUNBUFFERED": "1"}
BANDITCTL = [sys.executable, "-m", "server"]

WELCOME = """
name = "welcome"
fallback = { variant = "short", channel = "email" }

[actions]
variants = ["short", "long"]
channels = ["email", "push"]

[[context]]
name = "age"
kind = "number"
bounds = [18, 90]

[[context]]
name = "segment"
kind = "category"
levels = ["new", "regular"]

[[context]]
name = "has_app"
kind = "flag"

[outcome]
window = 3600
[[outcome.rewards]]
name = "click"
[[outcome.rewards]]
name = "buy"
bounds = [0, 100]
terminal = true

[groups]
random = 0.3
no_contact = 0.1

[publishing]
outcomes = 1
seconds = 0.01
"""
OTHER = {
    "actions": {"variants": ["a", "b"], "channels": ["email"]},
    "outcome": {"window": 60, "rewards": [{"name": "click"}]},
}


def banditctl(folder: Path, *arguments: str) -> CompletedProcess[str]:
    return subprocess.run(
        [*BANDITCTL, *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


class Serving:
    """A server process on a free port of this machine."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [*BANDITCTL, "serve", "--port", "0", *arguments]
        self.log = (folder / "server.log").open("a")
        self.process = subprocess.Popen(
            command, cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=self.log
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.address = self.line.removeprefix("serving on ")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        return status


class Refused(NamedTuple):
    """How starting a server on a spoiled folder ended."""

    result: CompletedProcess[str]
    before: set[str]
    after: set[str]


class Story(NamedTuple):
    """A folder in which a server was used, and how every command ended."""

    folder: Path
    serving: str
    ended: int
    results: dict[str, CompletedProcess[str]]


def inside(folder: Path, *arguments: str) -> CompletedProcess[str]:
    """Run a command in this process, which is quicker."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patched.chdir(folder)
        for key in set(os.environ) - set(PLAIN):
            patched.delenv(key)
        patched.setattr(sys, "argv", ["banditctl", *arguments])
        try:
            status = run()
        except SystemExit as end:
            status = end.code
    return CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    (folder / "welcome.toml").write_text(WELCOME)
    (folder / "other.json").write_text(json.dumps({"name": "other", **OTHER}))
    (folder / "third.yaml").write_text(json.dumps({"name": "third", **OTHER}))
    server = Serving(folder)
    here = ("--address", server.address)
    context = '{"age": 41, "segment": "new", "has_app": true}'
    asked = ("decide", "welcome", "c1", "--context", context, "--request-id", "r1", *here)
    results: dict[str, CompletedProcess[str]] = {}

    def together(**commands: tuple[str, ...]) -> None:
        with ThreadPoolExecutor(2) as pool:
            futures = {k: pool.submit(banditctl, folder, *v) for k, v in commands.items()}
        results.update({key: future.result() for key, future in futures.items()})

    def here_in_turn(**commands: tuple[str, ...]) -> None:
        results.update({key: inside(folder, *v) for key, v in commands.items()})

    try:
        together(
            create=(
                "experiments",
                "create",
                "welcome.toml",
                "--start",
                "--override",
                "a test",
                *here,
            ),
            second=("serve", "--port", "0"),
        )
        here_in_turn(
            create_json=("experiments", "create", "other.json", *here),
            create_yaml=(
                "experiments",
                "create",
                "third.yaml",
                "--start",
                "--override",
                "a test",
                *here,
            ),
            start=("experiments", "start", "other", "--override", "a test", *here),
            pause=("experiments", "pause", "third", *here),
            archive=("experiments", "archive", "third", *here),
        )
        first = _play(server.address)
        together(decide=asked, reward=("reward", "welcome", first, "click", "0.5", *here))
        here_in_turn(
            decide_again=asked,
            report=("experiments", "report", "welcome", *here),
            verify_beside=("verify",),
            export_beside=("export", "welcome", "beside.parquet"),
        )
        together(
            report_json=("experiments", "report", "welcome", "--json", *here),
            list=("experiments", "list", *here),
        )
    finally:
        ended = server.end(signal.SIGINT)
    together(verify=("verify",), export=("export", "welcome", "out.parquet"))
    here_in_turn(verify_one=("verify", "--experiment", "other", "--no-decisions"))
    return Story(folder, server.line, ended, results)


def _play(address: str) -> str:
    """Decide for 200 customers, all of whom buy; give the first decision's id."""
    asks = [
        Ask(customer_id=f"c{i}", context={"age": i, "segment": "x"}, request_id=f"b{i}")
        for i in range(200)
    ]
    with BanditClient(address) as client:
        answers = client.decide_batch("welcome", asks)
        for i, answer in enumerate(answers):
            fact = Fact(decision_id=answer.decision_id, name="buy", value=i % 9, event_id=f"e{i}")
            client.record_reward("welcome", fact)
    return answers[0].decision_id


def test_every_command_succeeds_in_silence(story: Story):
    failed = {k: r.stderr for k, r in story.results.items() if r.returncode or r.stderr}
    assert set(failed) == {"second"}


def test_a_second_server_is_refused(story: Story):
    is_one_line(story.results["second"], "another server holds")


def test_serve_says_where_and_ends_well(story: Story):
    assert re.fullmatch(r"serving on 127\.0\.0\.1:\d+", story.serving)
    assert story.ended == 0
    log = (story.folder / "server.log").read_text()
    assert "Traceback" not in log
    assert "stopped" in log


def test_the_database_and_its_secret_stay_in_the_folder(story: Story):
    assert (story.folder / "bandit.db").exists()
    assert (story.folder / "bandit.db.secret").stat().st_mode & 0o777 == 0o600
    assert not (story.folder / "bandit.db-wal").exists()  # everything is in the database


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("create", ["welcome", "running", "4"]),
        ("create_json", ["other", "draft", "2"]),
        ("create_yaml", ["third", "running", "2"]),
        ("start", ["other", "running"]),
        ("pause", ["third", "paused"]),
        ("archive", ["third", "archived"]),
    ],
)
def test_experiments_are_shown(story: Story, command: str, shown: list[str]):
    out = story.results[command].stdout
    assert all(re.search(rf"\b{word}\b", out) for word in shown), out


def test_list_shows_all(story: Story):
    out = story.results["list"].stdout
    assert all(re.search(rf"{n} .* {s} ", out) for n, s in STATES.items()), out


STATES = {"welcome": "running", "other": "running", "third": "archived"}


def test_decide_shows_what_to_send(story: Story):
    out = story.results["decide"].stdout
    assert re.search(r"decision id +│ [0-9a-f-]{36}", out)
    assert re.search(r"send +│ ((short|long) by (email|push), now|nothing)", out)
    assert re.search(r"propensity +│ [01]\.\d{6}", out)


def test_decide_again_says_so(story: Story):
    first, again = (story.results[k].stdout for k in ("decide", "decide_again"))
    assert "given before" in again
    assert "given before" not in first
    ids = [re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", out) for out in (first, again)]
    assert ids[0] == ids[1] != []


def test_reward_says_what_became_of_it(story: Story):
    assert story.results["reward"].stdout.strip() == "late"  # its outcome was closed before


def test_report_as_json(story: Story):
    report = json.loads(story.results["report_json"].stdout)
    assert report["experiment"]["spec"]["name"] == "welcome"
    assert sum(int(g["decisions"]) for g in report["groups"]) == 201
    assert int(report["reward_events"]) == 201
    assert int(report["late_events"]) == 1
    assert int(report["open_decisions"]) == 1
    assert int(report["experiment"]["log_length"]) == 201 + 201 + 200


def test_report_for_people_has_the_same_numbers(story: Story):
    out = story.results["report"].stdout
    report = json.loads(story.results["report_json"].stdout)
    for group in report["groups"]:
        name = group["group"].removeprefix("GROUP_").lower()
        assert re.search(rf"{name} +│ +{group['decisions']} │", out), out
    assert "201 reward events, 1 late" in out


@pytest.mark.parametrize("command", ["verify", "verify_beside"])
def test_verify_counts_what_it_proved(story: Story, command: str):
    last = story.results[command].stdout.strip().splitlines()[-1]
    found = re.fullmatch(
        r"verified: (\d+) log entries, (\d+) snapshots equal their fold bit for bit, "
        r"(\d+) decisions repeated",
        last,
    )
    assert found, last
    assert (found[1], found[3]) == ("602", "201")
    assert int(found[2]) >= 1


def test_verify_of_one_experiment(story: Story):
    assert "verified: 0 log entries" in story.results["verify_one"].stdout


@pytest.mark.parametrize("file", ["out", "beside"])
def test_export_is_the_log(story: Story, file: str):
    table = pq.read_table(story.folder / f"{file}.parquet")
    rows = table.to_pylist()
    connection = sqlite3.connect(story.folder / "bandit.db")
    logged = connection.execute(
        "select d.seq, lower(hex(d.decision_id)), d.request_id, lower(hex(d.customer)),"
        " d.decided_at, d.action, d.propensity, d.snapshot_version, o.value"
        " from decisions d left join outcomes o on o.decision_seq = d.seq"
        " and o.experiment_id = d.experiment_id order by d.seq"
    ).fetchall()
    connection.close()
    assert len(rows) == 201
    assert [
        (
            r["sequence"],
            r["decision_id"].replace("-", ""),
            r["request_id"],
            r["customer_key"],
            int(r["decided_at"].timestamp() * 1_000_000 + 0.5),
            r["action"],
            r["propensity"],
            r["snapshot_version"],
            r["outcome"],
        )
        for r in rows
    ] == logged
    by_request = {r["request_id"]: r for r in rows}
    assert by_request["r1"]["context.age"] == 41.0
    assert by_request["r1"]["context.segment"] == "new"
    assert by_request["r1"]["context.has_app"] is True
    assert by_request["b7"]["context.segment"] == "(other)"
    assert by_request["b7"]["context.has_app"] is None
    assert {r["group"] for r in rows} == {"bandit", "random", "no_contact"}
    names = {(r["action"], r["variant"], r["channel"], r["slot"]) for r in rows}
    assert names <= {
        (0, "short", "email", "now"),
        (1, "short", "push", "now"),
        (2, "long", "email", "now"),
        (3, "long", "push", "now"),
        (None, None, None, None),
    }
    assert not list(story.folder.glob("*.partial"))


# --- errors ---------------------------------------------------------------------------------


def is_one_line(result: CompletedProcess[str], *said: str) -> None:
    """Expect one clear line on stderr, nothing else, and a status that is not zero."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode not in (0, None), result
    assert "Traceback" not in result.stderr
    assert [*errors] == result.stderr.splitlines(), result.stderr
    assert len(errors) == 1
    assert all(one in errors[0] for one in said), errors[0]


SPOILED = {
    "missing.toml": (None, "missing.toml"),
    "bad.toml": ("name = ", "bad.toml", "toml"),
    "bad.json": ("{", "bad.json", "json"),
    "bad.yaml": ("name: x\nactions: [\n", "bad.yaml", "yaml"),
    "tag.yaml": ("name: !!python/object:os.system x\n", "tag.yaml", "yaml"),
    "anchor.yaml": ("a: &x [1]\nb: *x\n", "anchor.yaml", "anchors"),
    "list.json": ("[1, 2]", "list.json"),
    "empty.toml": ("", "actions: is required", "outcome: is required"),
    "typo.toml": (WELCOME.replace("variants", "variant"), "actions.variant", "variants"),
    "bounds.toml": (WELCOME.replace("[18, 90]", "[90, 18]"), "context[0].bounds"),
    "name.toml": (WELCOME.replace('"welcome"', '"a/b"'), "name: 'a/b' is not a name"),
    "spec.txt": (WELCOME, "txt", "toml, yaml, json"),
    "binary.toml": (b"\xff\xfe\x00", "binary.toml"),
    "huge.json": ('{"name": "' + "x" * 1_000_001, "huge.json", "larger"),
}


@pytest.mark.parametrize("file", SPOILED)
def test_a_bad_specification(tmp_path: Path, file: str):
    content, *said = SPOILED[file]
    if isinstance(content, bytes):
        (tmp_path / file).write_bytes(content)
    elif content is not None:
        (tmp_path / file).write_text(content)
    is_one_line(inside(tmp_path, "experiments", "create", file, "--address", "127.0.0.1:1"), *said)


UNREADY: dict[str, tuple[tuple[str, ...], str]] = {
    "verify nothing": (("verify",), "there is no database"),
    "verify nowhere": (("verify", "--database", "sqlite:///no/bandit.db"), "no/bandit.db"),
    "verify nonsense": (("verify", "--database", "nonsense"), "nonsense"),
    "verify memory": (("verify", "--database", "sqlite://"), "in-memory"),
    "export nothing": (("export", "welcome", "out.parquet"), "there is no database"),
    "replay nothing": (("replay", "--data", "missing.csv"), "missing.csv"),
    "replay for": (("replay", "--data", "missing.csv", "--reward", "fame"), "visit, conversion"),
    "context": (("decide", "welcome", "c1", "--context", "{"), "context: is not JSON"),
    "context list": (("decide", "welcome", "c1", "--context", "[]"), "needs an object"),
}


@pytest.mark.parametrize("case", UNREADY)
def test_what_is_not_there(tmp_path: Path, case: str):
    arguments, said = UNREADY[case]
    is_one_line(inside(tmp_path, *arguments), said)
    assert list(tmp_path.iterdir()) == []


def test_no_server_is_there(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    is_one_line(inside(tmp_path, "experiments", "list", "--address", address), "connect")


def test_usage(tmp_path: Path):
    for arguments in (
        ["dance"],
        ["decide"],
        ["serve", "--port", "many"],
        ["demo", "--clients", "0"],
    ):
        found = inside(tmp_path, *arguments)
        assert found.returncode == 2
        assert "Traceback" not in found.stderr
    assert "serve" in inside(tmp_path, "--help").stdout


@pytest.fixture
def copied(story: Story, tmp_path: Path) -> Path:
    """Give a folder with the story's database and secret, to be spoiled."""
    for name in ("bandit.db", "bandit.db.secret"):
        (tmp_path / name).write_bytes((story.folder / name).read_bytes())
    return tmp_path


def sql(folder: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(folder / "bandit.db")
    assert connection.execute(statement, values).rowcount > 0
    connection.commit()
    connection.close()


def flip_posterior(folder: Path) -> None:
    connection = sqlite3.connect(folder / "bandit.db")
    version, data = connection.execute(
        "select version, posterior from snapshots where posterior is not null"
        " order by version desc limit 1"
    ).fetchone()
    connection.close()
    spoiled = data[:400] + bytes([data[400] ^ 1]) + data[401:]
    sql(folder, "update snapshots set posterior = ? where version = ?", spoiled, version)


def other_secret(folder: Path) -> None:
    (folder / "bandit.db.secret").write_text("another secret " * 4)


def short_secret(folder: Path) -> None:
    (folder / "bandit.db.secret").write_text("short")


def lost_secret(folder: Path) -> None:
    (folder / "bandit.db.secret").unlink()


def garbage(folder: Path) -> None:
    (folder / "bandit.db").write_text("this is a shopping list: milk, bread, butter\n" * 99)


def newer(folder: Path) -> None:
    sql(folder, "update alembic_version set version_num = '9999'")


SPOILS: dict[Callable[[Path], None], str] = {
    flip_posterior: "snapshot",
    other_secret: "is not the secret",
    short_secret: "fewer than 32 bytes",
    lost_secret: "secret",
    garbage: "is no database",
    newer: "9999",
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_verify_of_a_spoiled_database(
    copied: Path,
    spoil: Callable[[Path], None],
):
    spoil(copied)
    is_one_line(inside(copied, "verify"), SPOILS[spoil])


TAMPERED = {
    "outcome": "update outcomes set value = value + 1 where seq = (select max(seq) from outcomes)",
    "decision": "update decisions set propensity = 0.123 where reason = 1",
    "not dense": "delete from decisions where seq = 1",
}


@pytest.mark.parametrize("problem", TAMPERED)
def test_verify_of_a_changed_log(copied: Path, problem: str):
    sql(copied, TAMPERED[problem])
    found = inside(copied, "verify")
    is_one_line(found, "findings", problem)
    assert problem in found.stdout


def test_verify_and_export_of_an_unknown_experiment(copied: Path):
    for arguments in (["verify", "--experiment", "unheard of"], ["export", "unheard of", "x"]):
        is_one_line(inside(copied, *arguments), "no experiment 'unheard of'")
    assert sorted(p.name for p in copied.glob("*x*")) == []


def test_export_to_where_nothing_can_be_written(copied: Path):
    is_one_line(inside(copied, "export", "welcome", "no/such/folder/out.parquet"), "out.parquet")
    (copied / "folder").mkdir()
    is_one_line(inside(copied, "export", "welcome", "folder"), "folder")
    assert not list(copied.glob("**/*.partial"))


SERVE: dict[str, tuple[Callable[[Path], None] | None, tuple[str, ...], str]] = {
    "corrupt snapshot": (flip_posterior, (), "snapshot"),
    "garbage": (garbage, (), "is no database"),
    "missing folder": (None, ("--database", "sqlite:///no/such/bandit.db"), "no/such"),
    "port in use": (None, ("--port", "TAKEN"), "is in use"),
}


@pytest.fixture(scope="module")
def refused(story: Story, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Refused]:
    """Start a server on every kind of spoiled folder, two at a time."""

    def start(case: str, port: int) -> Refused:
        spoil, arguments, _ = SERVE[case]
        folder = tmp_path_factory.mktemp("refused")
        if spoil is not None:
            for name in ("bandit.db", "bandit.db.secret"):
                (folder / name).write_bytes((story.folder / name).read_bytes())
            spoil(folder)
        before = {p.name for p in folder.iterdir()}
        given = [str(port) if one == "TAKEN" else one for one in ("--port", "0", *arguments)]
        result = banditctl(folder, "serve", *given)
        return Refused(result, before, {p.name for p in folder.iterdir()})

    with socket.socket() as taken, ThreadPoolExecutor(2) as pool:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = pool.map(lambda case: start(case, port), SERVE)
        return dict(zip(SERVE, found, strict=True))


@pytest.mark.parametrize("case", SERVE)
def test_a_server_that_can_not_start_says_why(refused: dict[str, Refused], case: str):
    is_one_line(refused[case].result, SERVE[case][2])
    assert refused[case].result.stdout == ""


@pytest.mark.parametrize("case", [case for case in SERVE if case != "port in use"])
def test_a_server_that_can_not_start_makes_no_database(refused: dict[str, Refused], case: str):
    new = refused[case].after - refused[case].before
    assert not [name for name in new if not name.endswith((".lock", ".secret", ".turn"))]


REFUSED = {
    "--database": ("nonsense", "database"),
    "--host": ("0.0.0.0", "--insecure"),  # noqa: S104
    "--port": ("99999", "port"),
    "--threads": ("0", "threads"),
    "--grace": ("-1", "grace"),
    "--secret-file": ("missing", "missing"),
}


@pytest.fixture
def signals() -> Iterator[None]:
    """Put signal handlers back, which serve sets."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("option", REFUSED)
def test_a_setting_that_can_not_be(tmp_path: Path, option: str):
    value, said = REFUSED[option]
    is_one_line(inside(tmp_path, "serve", option, value), said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("signals")
def test_serving_with_another_secret(copied: Path):
    other_secret(copied)
    is_one_line(inside(copied, "serve", "--port", "0"), "is not the secret")
