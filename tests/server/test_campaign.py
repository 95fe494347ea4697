"""Campaigns: tables to packed rows, whole files, and a kill at any moment."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.context import ContextField, ContextSchema
from bandit.errors import BanditError, ConflictError, InvalidInputError, StateError
from server import campaign_file, tables
from server.campaign import Campaign, Pace, Report, chunk_rows, decide_many, reward_many, spec_of
from server.client import BanditClient
from server.commands import run
from server.commands.local import LocalServer
from server.commands.options import read_spec
from tests.server.harness import SPEC, Peer, eventually

ROOT = Path(__file__).parents[2]
PYTHONPATH = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
GROUPS = {"random": 0.3, "no_contact": 0.1}
SCHEMA = ContextSchema(
    fields=(
        ContextField(name="age", kind="number", bounds=(18.0, 90.0)),
        ContextField(name="share", kind="number", bounds=(0.0, 0.1), outside="reject"),
        ContextField(name="segment", kind="category", levels=("new", "regular")),
        ContextField(name="has_app", kind="flag"),
        ContextField(name="hour", kind="cyclic", period=24.0),
    )
)


def customers(n: int, **changes: object) -> pa.Table:
    """Give a list of customers that fits the harness's experiment."""
    random = np.random.default_rng(1)
    columns: dict[str, object] = {
        "customer_id": [f"customer {i}" for i in range(n)],
        "key": list(range(100, 100 + n)),
        "age": random.integers(18, 90, n),
        "segment": random.choice(["new", "regular", "never declared"], n),
        "has_app": pa.array(random.random(n) < 0.5, mask=random.random(n) < 0.2),
        "hour": random.random(n) * 24,
    }
    return pa.table({**columns, **changes})


@pytest.fixture
def started(name: str, peer: Peer) -> str:
    return peer.create(f"{name[:50]} campaign", groups=GROUPS)


@pytest.fixture
def client(peer: Peer) -> Iterator[BanditClient]:
    with BanditClient(f"127.0.0.1:{peer.server.port}", timeout=60.0) as connected:
        yield connected


# --- tables -----------------------------------------------------------------------------

cells = st.fixed_dictionaries(
    {
        "age": st.none() | st.floats(-1e6, 1e6),
        "share": st.none() | st.floats(0.0, 0.1),
        "segment": st.none() | st.sampled_from(["new", "regular", "other", ""]),
        "has_app": st.none() | st.booleans(),
        "hour": st.none() | st.floats(-1e4, 1e4),
    }
)


@settings(max_examples=50, deadline=None)
@given(st.lists(cells, min_size=1, max_size=20))
def test_a_table_is_packed_as_named_values_are_read(rows: list[dict[str, Any]]) -> None:
    kinds = [pa.float64(), pa.float64(), pa.string(), pa.bool_(), pa.float64()]
    table = pa.Table.from_pylist(
        rows, schema=pa.schema(list(zip([f.name for f in SCHEMA.fields], kinds, strict=True)))
    )
    packed = tables.matrix(table, SCHEMA)
    wanted = np.array([SCHEMA.row(row) for row in rows])
    np.testing.assert_allclose(packed, wanted.astype("<f4"), rtol=3e-7, atol=1e-45)
    assert (np.isnan(packed) == np.isnan(wanted)).all()
    SCHEMA.check_rows(packed.astype(np.float64))  # rounding left no bound


def test_a_bound_that_rounds_up_stays_inside() -> None:
    assert float(np.float32(0.1)) > 0.1
    table = pa.table({f.name: [None] for f in SCHEMA.fields} | {"share": [0.1]})
    assert float(tables.matrix(table, SCHEMA)[0, 1]) <= 0.1


def test_many_arrow_types_are_read() -> None:
    table = pa.table(
        {
            "age": pa.array([41, None], pa.int8()),
            "share": pa.array([Decimal("0.05"), None], pa.decimal128(4, 2)),
            "segment": pa.array(["regular", None]).dictionary_encode(),
            "has_app": pa.nulls(2),
            "hour": pa.array([3.5, None], pa.float32()),
        }
    )
    packed = tables.matrix(table, SCHEMA)
    np.testing.assert_array_equal(packed[0], np.array([41, 0.05, 1, np.nan, 3.5], "<f4"))
    assert np.isnan(packed[1]).all()


BAD = [
    ({"age": ["x", "y", "z"]}, 'column "age"', "string"),
    ({"age": [1.0, float("nan"), 2.0]}, 'row 8, column "age"', "NaN"),
    ({"age": [1.0, 2.0, 1e39]}, 'row 9, column "age"', "too large"),
    ({"age": [1.0, 2.0, -float("inf")]}, 'row 9, column "age"', "too large"),
    ({"share": [0.0, 0.05, 0.2]}, 'row 9, column "share"', "[0.0, 0.1]"),
    ({"segment": [1, 2, 3]}, 'column "segment"', "texts"),
    ({"segment": ["new", "x" * 257, None]}, 'row 8, column "segment"', "256"),
    ({"has_app": [0, 1, 1]}, 'column "has_app"', "true or false"),
    ({"hour": [0.0, 1e12, 0.0]}, 'row 8, column "hour"', "too large"),
]


@pytest.mark.parametrize(("change", "field", "word"), BAD)
def test_a_bad_cell_is_named_by_row_and_column(
    change: dict[str, Any], field: str, word: str
) -> None:
    table = pa.table({f.name: pa.nulls(3) for f in SCHEMA.fields} | change)
    with pytest.raises(InvalidInputError) as caught:
        tables.matrix(table, SCHEMA, first=6)
    assert caught.value.field == field
    assert word in str(caught.value)


def test_a_missing_column_a_double_one_and_a_required_field_are_named() -> None:
    table = pa.table({"agee": [1]})
    with pytest.raises(InvalidInputError, match=r'column "age": is missing; there are: agee'):
        tables.matrix(table, SCHEMA)
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["age", "age"])
    with pytest.raises(InvalidInputError, match="several"):
        tables.matrix(twice, SCHEMA)
    required = ContextField(name="age", kind="number", bounds=(0.0, 1.0), required=True)
    strict = ContextSchema(fields=(required,))
    with pytest.raises(InvalidInputError, match=r'row 2, column "age": .*required'):
        tables.matrix(pa.table({"age": [1.0, None]}), strict)


def test_ids_are_texts_or_whole_numbers() -> None:
    assert tables.texts(pa.table({"id": [7, 8]}), "id", 5) == ["7", "8"]
    for column, word in (
        ([1.5], "type double"),
        (["a", None], "row 2"),
        (["a", ""], "row 2"),
        (["a", "bcdefg"], "row 2"),
        (["a\0"], "NUL"),
    ):
        with pytest.raises(InvalidInputError, match=word):
            tables.texts(pa.table({"id": column}), "id", 5)


# --- many -------------------------------------------------------------------------------


def test_mappings_are_decided_in_chunks_and_reported(
    client: BanditClient, peer: Peer, started: str
) -> None:
    rows = customers(250).to_pylist()
    campaign = Campaign(experiment=started, name="spring", id_column="key")
    few = Pace(chunk=100, flight=3)
    found = list(decide_many(client, campaign, rows, pace=few))
    assert [table.num_rows for table in found] == [100, 100, 50]
    whole = pa.concat_tables(found)
    assert whole["id"].to_pylist() == [str(row["key"]) for row in rows]
    assert whole["customer_id"].to_pylist() == [row["customer_id"] for row in rows]
    assert peer.log_length(started) == 250
    again = pa.concat_tables(decide_many(client, campaign, rows, pace=Pace(chunk=77)))
    assert again == whole
    one = client.decide(
        started,
        rows[3]["customer_id"],
        {
            **{k: rows[3][k] for k in ("age", "segment", "has_app")},
            "hour": float(np.float32(rows[3]["hour"])),
        },
        request_id="spring-103",
    )
    assert one.is_repeated
    assert one.decision_id == whole["decision_id"][3].as_py()
    assert (one.variant, one.propensity) == (
        whole["variant"][3].as_py(),
        whole["propensity"][3].as_py(),
    )
    facts = whole.select(["decision_id"]).append_column("name", pa.array(["click", "buy"] * 125))
    report = Report(experiment=started, name="spring")
    told = reward_many(client, report, facts, pace=few)
    assert (told.recorded, told.duplicate, told.late, told.refused) == (250, 0, 0, [])
    assert reward_many(client, report, facts, pace=few).duplicate == 250


def test_an_event_that_can_not_be_recorded_is_told_by_its_row(
    client: BanditClient, started: str
) -> None:
    [table] = decide_many(client, Campaign(experiment=started, name="c"), customers(3))
    ids = [*table["decision_id"].to_pylist(), "01936c3e-0000-7000-8000-000000000000"]
    report = Report(experiment=started, name="r", kind="click")
    found = reward_many(client, report, pa.table({"decision_id": ids}), pace=Pace(chunk=2))
    assert found.recorded == 3
    assert [row for row, _ in found.refused] == [4]


def test_a_pace_and_a_campaign_check_themselves(client: BanditClient, started: str) -> None:
    for wrong in ({"chunk": 0}, {"chunk": 10_001}, {"flight": 0}, {"flight": 17}):
        with pytest.raises(InvalidInputError):
            Pace(**wrong)
    with pytest.raises(InvalidInputError):
        Campaign(experiment="e", name="n" * 61)
    spec = spec_of(client, started)
    assert chunk_rows(spec, 500) == 500
    assert chunk_rows(spec, 10_000) < 10_000, "messages stay under the server's limit"


# --- files ------------------------------------------------------------------------------


def decide_file(
    client: BanditClient, source: Path, out: Path, experiment: str, **options: str
) -> campaign_file.Done:
    def asked(fingerprint: str) -> Campaign:
        return Campaign(experiment=experiment, **{"name": fingerprint[:16], **options})

    return campaign_file.decide_file(client, source, out, asked, Pace(chunk=100))


def test_a_file_is_decided_once_and_found_done(
    client: BanditClient, peer: Peer, started: str, tmp_path: Path
) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(customers(250), source)
    done = decide_file(client, source, out, started, id_column="key")
    assert done[:2] == (250, 0)
    assert decide_file(client, source, out, started, id_column="key")[:2] == (250, 250)
    assert pq.read_table(out)["id"].to_pylist() == [str(100 + i) for i in range(250)]
    assert peer.log_length(started) == 250
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


class Killed(BaseException):
    """What stands for a kill here: nothing in the program catches it."""


def test_a_job_that_ends_at_any_step_goes_on_and_gives_the_same(
    client: BanditClient,
    peer: Peer,
    started: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before every step that touches the disk, in every file of its own."""
    source = tmp_path / "in.parquet"
    pq.write_table(customers(250), source)
    whole = tmp_path / "whole.parquet"
    steps = _steps(monkeypatch)
    decide_file(client, source, whole, started)
    count = steps[0]
    assert count > 10
    for k in range(1, count + 1):
        out = tmp_path / f"out-{k}.parquet"
        steps[:] = [0, k]
        with pytest.raises(Killed):
            decide_file(client, source, out, started)
        assert not out.exists() or pq.read_table(out).equals(pq.read_table(whole))
        steps[:] = [0, 10**9]
        decide_file(client, source, out, started)
        assert pq.read_table(out).equals(pq.read_table(whole))
        assert not out.with_name(out.name + ".parts").exists()
    assert peer.log_length(started) == 250


def _steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the steps that touch the disk, and end the job before the given one."""
    told = [0, 10**9]

    def before(function: Callable[..., object]) -> Callable[..., object]:
        def step(*args: object, **kwargs: object) -> object:
            told[0] += 1
            if told[0] >= told[1]:  # other threads of a killed process end with it
                raise Killed
            return function(*args, **kwargs)

        return step

    monkeypatch.setattr(campaign_file, "_sync", before(campaign_file._sync))
    monkeypatch.setattr(Path, "replace", before(Path.replace))
    monkeypatch.setattr(campaign_file.shutil, "rmtree", before(campaign_file.shutil.rmtree))
    return told


def test_a_changed_file_or_other_options_are_refused_with_their_names(
    client: BanditClient, peer: Peer, started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(customers(250), source)
    with monkeypatch.context() as patched:
        steps = _steps(patched)
        steps[1] = 6  # killed with the journal and a part written
        with pytest.raises(Killed):
            decide_file(client, source, out, started)
    before = peer.log_length(started)
    other = tmp_path / "other.parquet"
    pq.write_table(customers(251), other)
    for _ in range(2):  # under way, then done
        with pytest.raises(ConflictError, match="the content of the input file"):
            decide_file(client, other, out, started)
        with pytest.raises(ConflictError, match="--id-column"):
            decide_file(client, source, out, started, id_column="key")
        with pytest.raises(ConflictError, match="--campaign"):
            decide_file(client, source, out, started, name="another")
        assert peer.log_length(started) == before
        decide_file(client, source, out, started)
        before = peer.log_length(started)
    (tmp_path / "mine.parquet").write_text("precious")
    with pytest.raises(ConflictError, match="no result of decide-file"):
        decide_file(client, source, tmp_path / "mine.parquet", started)
    assert (tmp_path / "mine.parquet").read_text() == "precious"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": [1.0] * 149 + [float("nan")]}, 'row 150, column "age": is NaN'),
        ({"key": [1] * 150}, r"column \"key\": '1' stands 150 times"),
        ({"customer_id": ["c"] * 149 + [None]}, 'row 150, column "customer_id": is missing'),
        ({"hour": ["late"] * 150}, 'column "hour": has type string'),
    ],
)
def test_a_bad_row_stops_a_job_before_anything_is_decided(
    client: BanditClient,
    peer: Peer,
    started: str,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    source, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    table = customers(150)
    for column, values in change.items():
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.array(values))
    pq.write_table(table, source)
    with pytest.raises(InvalidInputError, match=message) as caught:
        decide_file(client, source, out, started, id_column="key")
    assert str(source) in str(caught.value)
    assert peer.log_length(started) == 0
    assert list(tmp_path.iterdir()) == [source]


def test_files_that_are_none_are_refused(
    client: BanditClient, started: str, tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    with pytest.raises(InvalidInputError, match="can not be read"):
        decide_file(client, tmp_path / "absent.parquet", out, started)
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(InvalidInputError, match="as Parquet"):
        decide_file(client, tmp_path / "text.parquet", out, started)
    pq.write_table(customers(0), tmp_path / "empty.parquet")
    with pytest.raises(InvalidInputError, match="no rows"):
        decide_file(client, tmp_path / "empty.parquet", out, started)
    pq.write_table(customers(5), tmp_path / "in.parquet")
    with pytest.raises(BanditError, match="can not be written"):
        decide_file(client, tmp_path / "in.parquet", tmp_path / "no" / "out.parquet", started)
    (tmp_path / "out.parquet.parts").mkdir()
    with (
        campaign_file.FileLock(tmp_path / "out.parquet.parts" / "lock"),
        pytest.raises(StateError, match="another process"),
    ):
        decide_file(client, tmp_path / "in.parquet", out, started)


# --- as a user runs it ------------------------------------------------------------------


def banditctl(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "server", *map(str, arguments)]


ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if not k.startswith("BANDIT_")},
    "COLUMNS": "200",
    "PYTHONPATH": PYTHONPATH,
}


def test_a_kill_in_the_middle_decides_nobody_twice(tmp_path: Path) -> None:
    """Kill -9 on a real server, then again; equal to an uninterrupted run on a like server."""
    rows, chunk = 3_000, 50
    source, spec = tmp_path / "in.parquet", tmp_path / "spec.json"
    pq.write_table(customers(rows), source)
    spec.write_text(json.dumps({**SPEC, "groups": GROUPS}))
    for name in ("plain", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bandit.db.secret").write_bytes(b"s" * 64)
    with Peer(tmp_path / "plain") as peer:
        peer.create("welcome", groups=GROUPS)
        with BanditClient(f"127.0.0.1:{peer.server.port}", timeout=60.0) as client:
            campaign = Campaign(experiment="welcome", name="spring", id_column="key")
            plain = pa.concat_tables(decide_many(client, campaign, customers(rows)))
    out = tmp_path / "out.parquet"
    with LocalServer(tmp_path / "killed") as server:
        with BanditClient(server.address) as client:
            client.create_experiment(read_spec(spec))
            client.start_experiment("welcome", override="a test")
        command = banditctl(
            "decide-file", source, out, "--experiment", "welcome", "--id-column", "key",
            "--campaign", "spring", "--chunk", str(chunk), "--address", server.address,
        )  # fmt: skip
        assert 5 <= _kill_in_the_middle(command, out, 5) < rows // chunk
        printed = subprocess.run(
            command, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        assert printed.returncode == 0, printed.stderr
        assert f"decided: {rows} rows" in printed.stdout
        assert "by an earlier run" in printed.stdout
        with BanditClient(server.address) as client:
            assert client.get_experiment("welcome").log_length == rows
    resumed = pq.read_table(out)
    assert resumed["id"].to_pylist() == [str(100 + i) for i in range(rows)]
    assert len(set(resumed["decision_id"].to_pylist())) == rows
    assert sorted(resumed["sequence"].to_pylist()) == list(range(1, rows + 1))
    same = [
        "id", "customer_id", "request_id", "action", "variant", "channel", "slot", "propensity",
        "group", "reason", "snapshot_version",
    ]  # fmt: skip
    assert resumed.select(same).equals(plain.select(same))


def _kill_in_the_middle(command: list[str], out: Path, parts: int) -> int:
    """Start a job, kill it once it has written so many parts; give how many there are."""
    folder = out.with_name(out.name + ".parts")
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: len(list(folder.glob("part-*.parquet"))) >= parts, 60.0)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    return len(list(folder.glob("part-*.parquet")))


def test_commands_tell_what_became_of_a_file(
    peer: Peer,
    started: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BANDIT_ADDRESS", f"127.0.0.1:{peer.server.port}")

    def told(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["banditctl", *arguments, "--experiment", started])
        try:
            status = run()
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    pq.write_table(customers(20), "in.parquet")
    status, out, _ = told("decide-file", "in.parquet", "out.parquet", "--campaign", "spring")
    assert status == 0
    assert out.splitlines()[-1] == "decided: 20 rows, campaign spring, in out.parquet"
    decided = pq.read_table("out.parquet")
    assert decided["request_id"][0].as_py() == "spring-000001"
    pq.write_table(decided.select(["decision_id"]), "events.parquet")
    status, out, _ = told("reward-file", "events.parquet", "--name", "click")
    assert (status, out.splitlines()[-1]) == (
        0,
        "reported: 20 recorded, 0 duplicate, 0 late, 0 refused",
    )
    status, out, _ = told("reward-file", "events.parquet", "--name", "click")
    assert "0 recorded, 20 duplicate" in out
    ids = [*decided["decision_id"].to_pylist()[:2], "01936c3e-0000-7000-8000-000000000000"]
    pq.write_table(pa.table({"decision_id": ids, "value": [0.5, 1.0, 1.0]}), "more.parquet")
    status, out, err = told("reward-file", "more.parquet", "--name", "click")
    assert status == 1
    assert "2 recorded, 0 duplicate, 0 late, 1 refused" in out
    assert "more.parquet: row 3: decision_id: no such decision" in err
    pq.write_table(pa.table({"decision_id": ["x"]}), "bad.parquet")
    status, _, err = told("reward-file", "bad.parquet", "--name", "click")
    assert (status, err) == (
        1,
        "error: bad.parquet: row 1, column \"decision_id\": 'x' is no UUID\n",
    )
