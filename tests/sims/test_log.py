"""A log is read as it was written, and nothing that is wrong with it becomes a number."""

import math
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit.context import OTHER
from bandit.errors import InvalidInputError
from bandit.spec_file import parse
from sims.log import Log, batches, join, read
from sims.log.tables import STAMP, columns_of

SPEC = parse(
    """
name = "w"
actions = { variants = ["a", "b"], channels = ["e", "p"], slots = ["now", "noon"] }
context = [
  { name = "age", kind = "number", bounds = [18, 90], outside = "reject" },
  { name = "seg", kind = "category", levels = ["x", "y"] },
  { name = "app", kind = "flag", required = true },
  { name = "hour", kind = "cyclic", period = 24 },
]
outcome = { window = 60, aggregation = "max", rewards = [{ name = "click" }] }
""",
    "toml",
)
SIZE = SPEC.actions.size
TYPES = {
    "sequence": pa.int64(),
    "decision_id": pa.string(),
    "customer_key": pa.string(),
    "decided_at": pa.timestamp("us", "UTC"),
    "group": pa.string(),
    "reason": pa.string(),
    "snapshot_version": pa.int64(),
    "action": pa.int32(),
    "variant": pa.string(),
    "channel": pa.string(),
    "slot": pa.string(),
    "propensity": pa.float64(),
    "outcome": pa.float64(),
    "context.age": pa.float64(),
    "context.seg": pa.string(),
    "context.app": pa.bool_(),
    "context.hour": pa.float64(),
}
NAN, INF = math.nan, math.inf
START = 1_700_000_000_000_000


def columns(n: int, seed: int = 1) -> dict[str, list[Any]]:
    """Give a good log as plain columns."""
    rng = np.random.default_rng(seed)
    actions = rng.integers(0, SIZE, n).tolist()
    levels = [[level.name for level in SPEC.actions.levels(a)] for a in actions]
    return {
        "sequence": (np.arange(n) * 3 + 1).tolist(),
        "decision_id": [str(UUID(bytes=rng.bytes(16))) for _ in range(n)],
        "customer_key": [f"{int(c):032x}" for c in rng.integers(0, max(n // 2, 1), n)],
        "decided_at": (START + np.arange(n) * 500_000).tolist(),
        "group": ["bandit", "random"] * (n // 2) + ["bandit"] * (n % 2),
        "reason": ["policy", "random_group"] * (n // 2) + ["policy"] * (n % 2),
        "snapshot_version": (np.arange(n) // 10).tolist(),
        "action": actions,
        "variant": [one[0] for one in levels],
        "channel": [one[1] for one in levels],
        "slot": [one[2] for one in levels],
        "propensity": rng.uniform(0.01, 1.0, n).tolist(),
        "outcome": rng.integers(0, 2, n).astype(float).tolist(),
        "context.age": [None if u < 0.1 else 18 + 70 * u for u in rng.random(n).tolist()],
        "context.seg": [("x", "y", "z", None)[i % 4] for i in range(n)],
        "context.app": (rng.random(n) < 0.5).tolist(),
        "context.hour": rng.uniform(0, 24, n).tolist(),
    }


def table(data: dict[str, list[Any]], types: dict[str, Any] | None = None) -> pa.Table:
    known = TYPES | (types or {})
    return pa.table({name: pa.array(values, known[name]) for name, values in data.items()})


def write(path: Path, data: dict[str, list[Any]] | pa.Table, **settings: object) -> Path:
    made = data if isinstance(data, pa.Table) else table(data)
    if path.suffix == ".csv":
        pa_csv.write_csv(made, path)
    else:
        pq.write_table(made, path, **settings)
    return path


def same(one: Log, other: Log) -> bool:
    names = ("actions", "rewards", "propensities", "rows", "times", "versions", "customers")
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "rows")
        for name in (*names, "groups", "places")
    )


# --- good logs ----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["log.parquet", "log.csv"])
def test_what_was_written_is_read(tmp_path: Path, file: str):
    data = columns(101)
    log = read(write(tmp_path / file, data), SPEC)
    assert len(log) == 101
    assert log.size == SIZE == 8
    assert log.actions.tolist() == data["action"]
    assert log.rewards.tolist() == data["outcome"]
    assert log.propensities.tolist() == data["propensity"]
    assert log.versions is not None
    assert log.versions.tolist() == data["snapshot_version"]
    assert log.times is not None
    assert log.times.tolist() == [t / 1e6 for t in data["decided_at"]]
    assert log.groups is not None
    assert log.groups.tolist() == [1 + i % 2 for i in range(101)]
    assert log.rows is not None
    for i in range(101):
        context = {f.name: data[f"context.{f.name}"][i] for f in SPEC.context}
        np.testing.assert_array_equal(log.rows[i], SPEC.schema.row(context))
    assert log.customers is not None
    by_key: dict[str, set[int]] = {}
    for key, number in zip(data["customer_key"], log.customers.tolist(), strict=True):
        by_key.setdefault(key, set()).add(number)
    assert all(len(numbers) == 1 for numbers in by_key.values())
    assert len({min(numbers) for numbers in by_key.values()}) == len(by_key)
    assert (log.separated, log.excluded) == ({}, {})


@given(n=st.integers(1, 200), size=st.integers(1, 70), group=st.integers(1, 90))
@settings(max_examples=25)
def test_any_batches_and_row_groups_give_the_same_log(
    tmp_path_factory: pytest.TempPathFactory, n: int, size: int, group: int
):
    folder = tmp_path_factory.mktemp("logs")
    data = columns(n)
    data["outcome"] = [None if i % 7 == 3 else v for i, v in enumerate(data["outcome"])]
    whole = read(write(folder / "a.parquet", data), SPEC)
    path = write(folder / "b.parquet", data, row_group_size=group)
    parts = list(batches(path, SPEC, size=size))
    assert all(0 < len(part) <= size for part in parts)
    joined = join(parts)
    assert same(whole, joined)
    assert (
        joined.separated
        == whole.separated
        == ({"no outcome": n // 7 + (n % 7 > 3)} if n > 3 else {})
    )


def test_the_columns_of_somebody_elses_log_are_named(tmp_path: Path):
    data = columns(40)
    theirs = {
        "what": data["variant"],
        "how": data["channel"],
        "when": data["slot"],
        "p": data["propensity"],
        "visit": [int(v) for v in data["outcome"]],
        "unix": [t // 1_000_000 for t in data["decided_at"]],
        "who": list(range(40)),
        "age": [30] * 40,
        "seg": data["context.seg"],
        "app": [int(v) for v in data["context.app"]],
        "hour": data["context.hour"],
        "place": [i % 3 for i in range(40)],
    }
    named = {
        "variant": "what",
        "channel": "how",
        "slot": "when",
        "propensity": "p",
        "reward": "visit",
        "decided_at": "unix",
        "customer_key": "who",
        "position": "place",
        **{f"context.{name}": name for name in ("age", "seg", "app", "hour")},
    }
    for file in ("log.parquet", "log.csv"):
        path = write(tmp_path / file, pa.table(theirs))
        log = read(path, SPEC, columns=named)
        assert log.actions.tolist() == data["action"]
        assert log.rewards.tolist() == data["outcome"]
        assert log.times is not None
        assert log.times.tolist() == theirs["unix"]
        assert log.positions is not None
        assert log.positions.tolist() == theirs["place"]
        assert log.rows is not None
        assert log.rows[2].tolist() == [30.0, OTHER, theirs["app"][2], theirs["hour"][2]]
        assert log.versions is None
        assert log.groups is None
        assert read(path, SPEC, columns=named, contexts=False).rows is None


def test_a_column_that_is_said_to_be_one_thing_is_not_another_by_its_name(tmp_path: Path):
    data = columns(10)
    theirs = {**data, "group": data["context.seg"]}  # their word for the segment
    del theirs["context.seg"], theirs["reason"]
    path = write(tmp_path / "a.parquet", theirs)
    with pytest.raises(InvalidInputError, match="must be one of bandit, random"):
        read(path, SPEC, columns={"context.seg": "customer_key"})
    log = read(path, SPEC, columns={"context.seg": "group"})
    assert log.groups is None
    assert log.rows is not None
    assert log.rows[:4, 1].tolist()[:3] == [0.0, 1.0, OTHER]


def test_rows_that_are_no_evidence_are_set_apart_and_counted(tmp_path: Path):
    data = columns(20)
    for i, (group, reason, action) in enumerate(
        [
            ("no_contact", "no_contact_group", None),
            ("baseline", "baseline_group", 1),
            ("bandit", "paused", 0),
            ("random", "stale_snapshot", None),
            ("bandit", "no_eligible_action", None),
        ]
    ):
        data["group"][i], data["reason"][i], data["action"][i] = group, reason, action
        for factor in ("variant", "channel", "slot"):
            data[factor][i] = None
    data["outcome"][7] = None
    log = read(write(tmp_path / "a.parquet", data), SPEC)
    assert log.places is not None
    assert log.places.tolist() == [6, 7, *range(9, 21)]
    told = ("no_contact_group", "baseline_group", "paused", "stale_snapshot", "no_eligible_action")
    assert log.separated == {**dict.fromkeys(told, 1), "no outcome": 1}
    assert log.excluded == {}
    only = read(tmp_path / "a.parquet", SPEC, groups=("random",))
    assert only.places is not None
    assert only.places.tolist() == [6, 10, 12, 14, 16, 18, 20]
    assert sum(only.separated.values()) == 13


def test_clocks_of_several_processes_may_differ_where_the_log_has_its_order(tmp_path: Path):
    data = columns(10)
    data["decided_at"][5] = START - 50_000_000
    assert len(read(write(tmp_path / "a.parquet", data), SPEC)) == 10
    data["decided_at"][5] = START - 70_000_000
    with pytest.raises(InvalidInputError, match=r"row 6.*before the rows above"):
        read(write(tmp_path / "a.parquet", data), SPEC)
    data["decided_at"][5] = START - 1
    del data["sequence"]
    with pytest.raises(InvalidInputError, match=r"row 6.*before the rows above"):
        read(write(tmp_path / "a.parquet", data), SPEC)


# --- bad cells ----------------------------------------------------------------------------

BAD_CELLS = [
    ("propensity", None, "needs a number, got nothing"),
    ("propensity", 0.0, "must be in (0, 1]"),
    ("propensity", -0.5, "must be in (0, 1]"),
    ("propensity", 1.0000001, "must be in (0, 1]"),
    ("propensity", NAN, "must be in (0, 1]"),
    ("propensity", INF, "must be in (0, 1]"),
    ("propensity", 5e-324, "must be in (0, 1]"),
    ("outcome", NAN, "must be a finite number"),
    ("outcome", INF, "must be a finite number"),
    ("outcome", -INF, "must be a finite number"),
    ("outcome", 1.5, "must be in [0, 1], as outcome.rewards say"),
    ("action", 8, "must be a whole number in [0, 7]"),
    ("action", -1, "must be a whole number in [0, 7]"),
    ("action", None, "must be a whole number in [0, 7]"),
    ("variant", "c", "must be a variant, such as a, b"),
    ("slot", "NOW", "must be a slot, such as now, noon"),
    ("decided_at", START - 100_000_000, "must not be before the rows above"),
    ("decided_at", None, "needs a time"),
    ("decision_id", None, "needs an id"),
    ("sequence", 1, "must be more than in every row before"),
    ("sequence", 94, "must be more than in every row before"),  # as in the row above
    ("sequence", None, "needs a whole number"),
    ("snapshot_version", -1, "needs a whole number, 0 or more"),
    ("customer_key", None, "needs a customer"),
    ("group", "bandits", "must be one of bandit, random, baseline, no_contact"),
    ("group", "random", "must go with the group"),
    ("reason", None, "must be one of policy, random_group"),
    ("reason", "random_group", "must go with the group"),
    ("context.age", NAN, "must be a finite number, or nothing where it is not known"),
    ("context.age", INF, "must be a finite number"),
    ("context.age", 17.9, "must be in [18, 90], the field's bounds"),
    ("context.app", None, "is required"),
    ("context.hour", 1e12, "must be within 1e+09 periods of 24"),
]


@pytest.mark.parametrize(("name", "value", "need"), BAD_CELLS)
@pytest.mark.parametrize("file", ["log.parquet", "log.csv"])
def test_a_bad_cell_is_named_or_counted(
    tmp_path: Path, name: str, value: object, need: str, file: str
):
    data = columns(50)
    data["group"][32], data["reason"][32] = "bandit", "policy"
    data[name][32] = value
    path = write(tmp_path / file, data)
    with pytest.raises(InvalidInputError) as refused:
        list(batches(path, SPEC, size=20))
    at = name if (name, value) != ("group", "random") else "reason"
    assert refused.value.field == f'{path}: row 33, column "{at}"'
    assert need in refused.value.message
    left = list(batches(path, SPEC, size=20, exclude=True))
    assert sum(len(part) for part in left) == 49
    counts = sum((Counter(part.excluded) for part in left), Counter())
    assert len(counts) == counts.total() == 1
    assert next(iter(counts)).startswith(f"{at}: ")
    assert 33 not in np.concatenate([part.places for part in left])


def test_a_repeated_decision_names_both_rows(tmp_path: Path):
    data = columns(90)
    data["decision_id"][70] = data["decision_id"][11]
    path = write(tmp_path / "a.parquet", data)
    with pytest.raises(InvalidInputError, match=r"row 71.*must not come twice.*which row 12 has"):
        list(batches(path, SPEC, size=16))
    assert sum(len(b) for b in batches(path, SPEC, size=16, exclude=True)) == 89


def test_an_action_that_says_two_things_is_refused(tmp_path: Path):
    data = columns(10)
    data["action"][4] = (data["action"][4] + 1) % SIZE
    with pytest.raises(
        InvalidInputError, match=r"row 5, column \"action\".*which the spec.* calls"
    ):
        read(write(tmp_path / "a.parquet", data), SPEC)


def test_a_missing_reward_is_refused_where_no_window_can_be_open(tmp_path: Path):
    data = columns(10)
    data["outcome"][3] = None
    path = write(
        tmp_path / "a.parquet",
        table(data).rename_columns([{"outcome": "reward"}.get(name, name) for name in data]),
    )
    with pytest.raises(InvalidInputError, match=r"row 4, column \"reward\": needs a number"):
        read(path, SPEC)


def test_a_shown_value_is_harmless(tmp_path: Path):
    data = columns(5)
    data["variant"][0] = "\x1b[31m\n" + "v" * 5_000
    with pytest.raises(InvalidInputError) as refused:
        read(write(tmp_path / "a.parquet", data), SPEC)
    assert "\\x1b[31m\\n" in str(refused.value)
    assert len(str(refused.value)) < 400
    assert str(refused.value).isprintable()


# --- bad tables ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "need"),
    [
        (["propensity"], "no column 'propensity'"),
        (["outcome"], "no column 'outcome'"),
        (["action", "channel"], "no column 'channel' for action or channel"),
        (["context.seg"], "no column 'context.seg'"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, gone: list[str], need: str):
    path = write(tmp_path / "a.parquet", table(columns(5)).drop(gone))
    with pytest.raises(InvalidInputError) as refused:
        read(path, SPEC)
    assert refused.value.field == str(path)
    assert need in refused.value.message


@pytest.mark.parametrize(
    ("name", "kind", "need"),
    [
        ("propensity", pa.string(), "needs numbers"),
        ("outcome", pa.timestamp("s"), "needs numbers"),
        ("action", pa.string(), "needs whole numbers"),
        ("variant", pa.float64(), "needs texts"),
        ("decided_at", pa.string(), "needs times"),
        ("decision_id", pa.float64(), "needs texts or whole numbers"),
        ("context.age", pa.string(), "needs numbers"),
        ("context.seg", pa.list_(pa.string()), "needs texts"),
        ("context.app", pa.string(), "needs truth values"),
        ("group", pa.binary(), "needs texts"),
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, name: str, kind: object, need: str):
    data = columns(5)
    data[name] = [None] * 5
    path = write(tmp_path / "a.parquet", table(data, {name: kind}))
    with pytest.raises(InvalidInputError) as refused:
        read(path, SPEC, exclude=True)
    assert refused.value.field == f'{path}: column "{name}"'
    assert need in refused.value.message


def test_names_of_columns_are_checked(tmp_path: Path):
    path = write(tmp_path / "a.parquet", columns(5))
    with pytest.raises(InvalidInputError, match="no column of a log is called 'proppensity'; did"):
        read(path, SPEC, columns={"proppensity": "propensity"})
    with pytest.raises(InvalidInputError, match="no column 'p' for propensity; there are 'seq"):
        read(path, SPEC, columns={"propensity": "p"})
    with pytest.raises(InvalidInputError, match="'bandits' is none of"):
        read(path, SPEC, groups=("bandits",))
    data = table(columns(5))
    twice = pa.table([*data.columns, data["outcome"]], names=[*data.column_names, "outcome"])
    with pytest.raises(InvalidInputError, match="column 'outcome' is there twice"):
        read(write(tmp_path / "b.parquet", twice), SPEC)


@pytest.mark.parametrize("file", ["log.parquet", "log.csv"])
def test_nothing_is_no_log(tmp_path: Path, file: str):
    path = tmp_path / file
    with pytest.raises(InvalidInputError, match="no such file"):
        read(path, SPEC)
    path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="is empty"):
        read(path, SPEC)
    write(path, columns(0))
    with pytest.raises(InvalidInputError, match="holds no rows"):
        read(path, SPEC)
    data = columns(4)
    data["outcome"] = [None, None, None, NAN]
    write(path, data)
    with pytest.raises(InvalidInputError, match="none of 4 rows is left: 3 no outcome, 1 outcome:"):
        read(path, SPEC, exclude=True)
    with pytest.raises(InvalidInputError, match="no such file"):
        read(tmp_path, SPEC)


def test_a_csv_that_ends_too_early_names_the_row(tmp_path: Path):
    path = write(tmp_path / "a.csv", columns(30))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InvalidInputError, match=r"row 30: has 1[0-9] cells, the header has 17"):
        read(path, SPEC)


@pytest.mark.parametrize("text", ["NA", "0,5", "0.5x", "1_0", "None", "0x1p-2"])
def test_a_text_that_spells_no_number_is_named(tmp_path: Path, text: str):
    data = columns(10)
    cells = [str(v) for v in data["propensity"]]
    cells[6] = text
    path = write(
        tmp_path / "a.csv", table({**data, "propensity": cells}, {"propensity": pa.string()})
    )
    with pytest.raises(InvalidInputError, match=r'row 7, column "propensity": needs a number, got'):
        read(path, SPEC)


def test_a_file_of_something_else_is_no_parquet(tmp_path: Path):
    path = tmp_path / "a.parquet"
    path.write_text("sequence,action\n1,2\n")
    with pytest.raises(InvalidInputError, match="is no Parquet file"):
        read(path, SPEC)
    path.write_bytes(b"PAR1" + b"\0" * 100 + b"PAR1")
    with pytest.raises(InvalidInputError, match="can not be read"):
        read(path, SPEC)


@given(spoiling=st.data())
@settings(max_examples=120)
def test_whatever_is_done_to_a_file_it_is_refused_or_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, spoiling: st.DataObject
):
    """With what an export has: checksums of its pages, and the names and types of its columns."""
    path = tmp_path_factory.getbasetemp() / "spoiled.parquet"
    made = table(columns(60))
    made = made.replace_schema_metadata({STAMP: columns_of(made.schema)})
    write(path, made, row_group_size=25, write_page_checksum=True)
    before = read(path, SPEC)
    data = bytearray(path.read_bytes())
    match spoiling.draw(st.sampled_from(["cut", "flip", "write", "take"])):
        case "cut":
            del data[spoiling.draw(st.integers(0, len(data) - 1)) :]
        case "flip":
            data[spoiling.draw(st.integers(0, len(data) - 1))] ^= 1 << spoiling.draw(
                st.integers(0, 7)
            )
        case "write":
            for _ in range(spoiling.draw(st.integers(1, 4))):
                place = spoiling.draw(st.integers(0, len(data) - 1))
                data[place] = spoiling.draw(st.integers(0, 255))
        case _:
            place = spoiling.draw(st.integers(0, len(data) - 1))
            del data[place : place + spoiling.draw(st.integers(1, 40))]
    path.write_bytes(data)
    try:
        assert same(read(path, SPEC), before)
    except InvalidInputError as refused:
        assert str(path) in refused.field


@given(cells=st.lists(st.text(max_size=12), min_size=17, max_size=17), column=st.integers(0, 16))
@settings(max_examples=60)
def test_any_text_in_a_csv_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], column: int
):
    path = tmp_path_factory.getbasetemp() / "odd.csv"
    write(path, columns(3))
    with path.open("a", encoding="utf-8", errors="replace", newline="") as file:
        good = path.read_text().splitlines()[1].split(",")
        good[column] = cells[column]
        file.write(",".join(good) + "\n" + ",".join(cells) + "\n")
    for exclude in (False, True):
        try:
            log = read(path, SPEC, exclude=exclude)
        except InvalidInputError:
            continue
        assert np.isfinite(log.rewards).all()
        assert ((log.propensities > 0) & (log.propensities <= 1)).all()


# --- logs in memory -----------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "actions": np.array([0, 1]),
    "rewards": np.array([0.0, 1.0]),
    "propensities": np.array([0.5, 1.0]),
    "size": 2,
}


@pytest.mark.parametrize(
    ("part", "value", "need"),
    [
        ("actions", np.array([0, 2]), r"must be in \[0, 1\], got 2 in row 2"),
        ("actions", np.array([0.0, 1.0]), "need an array of whole numbers"),
        ("rewards", np.array([0.0, NAN]), "must be finite, got nan in row 2"),
        ("rewards", np.array([0, 1]), "need an array of real numbers"),
        ("propensities", np.array([0.0, 1.0]), r"must be in \(0, 1\], got 0.0 in row 1"),
        ("propensities", np.array([0.5]), r"have shape \(1,\), but there are 2 actions"),
        ("propensities", [0.5, 0.5], "need an array"),
        ("rows", np.zeros(2), "have shape"),
        ("times", np.array([NAN, 1.0]), "must be finite"),
        ("rows", np.array([[INF], [1.0]]), "must not be infinite"),
    ],
)
def test_a_log_in_memory_checks_itself(part: str, value: object, need: str):
    Log(**GOOD)
    with pytest.raises(InvalidInputError, match=need) as refused:
        Log(**{**GOOD, part: value})
    assert refused.value.field == part


def test_only_batches_of_one_log_are_joined():
    one, timed = Log(**GOOD), Log(**GOOD, times=np.array([1.0, 2.0]))
    assert len(join([one, one])) == 4
    with pytest.raises(InvalidInputError, match="are in some batches only"):
        join([one, timed])
    with pytest.raises(InvalidInputError, match="differs between batches"):
        join([one, Log(**{**GOOD, "size": 3})])
    with pytest.raises(InvalidInputError, match="there are no batches"):
        join([])
