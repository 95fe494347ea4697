"""Rollouts in processes and on clusters: the same bits, shards that are kept, workers that die."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joblib import parallel_config
from typer.testing import CliRunner

from bandit.errors import BanditError, InvalidInputError, UnavailableError
from bandit.kernels.compiling import kernel
from server.commands import app
from sims import backends
from sims.backends import Backend
from sims.rollouts import Plan, Rollout, many, plan_of, played, rollout, shelving, task
from sims.rollouts.shelving import Shard, Shelf, cut, gaps, key_of
from sims.rollouts.tasks import reduce
from sims.rollouts.tracks import Track
from sims.worlds import catalogue
from tests.sims import jobs

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0
Results = Iterator[tuple[int, Track]]


def plan(**changes: object) -> Plan:
    """Give a plan of five short replications."""
    of = catalogue.preset("stationary")
    made = plan_of(of.spec, of.world, {"ts": "thompson"}, customers=300, replications=5)
    return replace(made, **{"checkpoints": ()} | changes)  # type: ignore[arg-type]


def same(one: Rollout, other: Rollout) -> bool:
    return all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(one.track, other.track, strict=True)
    )


@pytest.fixture(scope="module")
def alone() -> Rollout:
    """Give what one process finds, all replications in one shard."""
    of = plan()
    return reduce(of, [task(of, Shard(0, 5))])


# --- the same bits ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "how",
    [Backend(), Backend(kind="loky", workers=2), Backend(kind="dask", workers=2)],
    ids=lambda how: how.kind,
)
def test_every_backend_gives_the_same_bits(how: Backend, alone: Rollout):
    done: list[int] = []
    found = played(plan(), how, passed=done.append)
    assert same(found, alone)
    assert found.table().equals(alone.table())
    assert sum(done) == 300 * 5 * len(plan().policies)


def test_the_size_of_shards_changes_nothing(
    alone: Rollout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for seconds, count in ((0.0, 5), (1.0, 3), (10.0, 1)):
        monkeypatch.setattr(many, "seconds_of", lambda _: 1.5 if count == 3 else 1.0)  # noqa: B023
        monkeypatch.setattr(many, "SHARD_SECONDS", 3.0 if count == 3 else seconds)
        folder = tmp_path / str(count)
        assert same(played(plan(), folder=folder), alone)
        assert len(list((folder / "shards").iterdir())) == count


def test_results_may_come_in_any_order(alone: Rollout, monkeypatch: pytest.MonkeyPatch):
    def backwards(_: Backend, function: Callable[[Shard], Track], todo: list[Shard]) -> Results:
        for place in reversed(range(len(todo))):
            yield place, function(todo[place])

    monkeypatch.setattr(Backend, "run", backwards)
    assert same(played(plan(), Backend()), alone)


def test_a_job_has_one_thread_for_linear_algebra():
    for how in (Backend(), Backend(kind="loky", workers=2)):
        for _, (*threads, pid) in how.run(jobs.threads, [0, 1]):
            assert threads
            assert set(threads) == {1}
            assert (pid == os.getpid()) == (how.kind == "here")


def test_a_shard_takes_some_seconds_and_every_worker_has_one(monkeypatch: pytest.MonkeyPatch):
    def sizes(seconds: float, replications: int, workers: int) -> list[int]:
        monkeypatch.setattr(many, "seconds_of", lambda _: seconds)
        of = plan(replications=replications)
        todo = many._cut(of, [], Backend(kind="loky", workers=workers), is_kept=False)
        return [shard.stop - shard.first for shard in todo]

    assert sizes(0.3, 100, 2) == [10] * 10
    assert sizes(60.0, 3, 2) == [1, 1, 1]
    assert sizes(0.001, 10, 4) == [3, 3, 3, 1]


def test_measuring_a_plan_compiles_and_gives_seconds():
    assert 0.0 < many.seconds_of(plan(customers=100_000)) < 10_000.0


# --- shards in a folder -----------------------------------------------------------------


@given(st.sets(st.integers(0, 30)), st.integers(1, 9))
def test_gaps_and_what_is_done_are_everything_once(missing: set[int], size: int):
    done = [Shard(i, i + 1) for i in range(31) if i not in missing]
    todo = cut(gaps(done, 31), size)
    assert [i for shard in todo for i in range(*shard)] == sorted(missing)
    assert all(shard.stop - shard.first <= size for shard in todo)


def test_what_is_kept_is_not_computed_anew(
    alone: Rollout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    of, told = plan(), []
    shelf = Shelf(tmp_path / "shards", key_of(of))
    shelf.put(Shard(1, 3), task(of, Shard(1, 3))._asdict())
    shelf.put(Shard(2, 3), task(of, Shard(2, 3))._asdict())
    computed: list[int] = []

    def counted(of: Plan, shard: Shard, passed: Callable[[int], None] | None = None) -> Track:
        if of.replications == 5:
            computed.extend(range(*shard))
        return task(of, shard, passed)

    monkeypatch.setattr(many, "task", counted)
    assert same(played(of, folder=tmp_path, told=told.append), alone)
    assert computed == [0, 3, 4]
    assert told == [f"2 of 5 replications were found in {tmp_path / 'shards'}"]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut short": lambda data: data[:-100],
    "a bit": lambda data: data[:3000] + bytes([data[3000] ^ 1]) + data[3001:],
    "empty": lambda _: b"",
    "another header": lambda data: b'{"key": 1}\n' + data,
    "no header": lambda _: b"[]\n\x00",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_shard_is_told_of_and_not_taken(name: str, alone: Rollout, tmp_path: Path):
    played(plan(), folder=tmp_path)
    (kept,) = (tmp_path / "shards").iterdir()
    kept.write_bytes(DAMAGE[name](kept.read_bytes()))
    told: list[str] = []
    assert same(played(plan(), folder=tmp_path, told=told.append), alone)
    assert told == [f"{kept.name} is damaged and is computed anew"]
    told.clear()
    played(plan(), folder=tmp_path, told=told.append)
    assert told == [f"5 of 5 replications were found in {tmp_path / 'shards'}"]


def test_a_shard_of_another_plan_is_not_taken_whatever_it_is_named(alone: Rollout, tmp_path: Path):
    other, told = plan(seed=2), []
    assert not same(played(other, folder=tmp_path), alone)
    assert same(played(plan(), folder=tmp_path, told=told.append), alone)
    assert len(told) == 1
    assert told[0].startswith("1 shards in ")
    folder, span = tmp_path / "shards", Shard(0, 5)
    theirs, mine = (Shelf(folder, key_of(of)).path(span) for of in (other, plan()))
    mine.write_bytes(theirs.read_bytes())
    told.clear()
    assert same(played(plan(), folder=tmp_path, told=told.append), alone)
    assert any("is damaged" in one for one in told)


def test_the_name_of_a_plan_tells_everything_apart(monkeypatch: pytest.MonkeyPatch):
    base = plan()
    others = [
        plan(seed=2),
        plan(customers=301),
        plan(replications=6),
        plan(world=replace(base.world, missing=0.1)),
        plan(policies=base.policies[::-1]),
        plan(spec=replace(base.spec, name="other")),
    ]
    assert len({key_of(of) for of in (base, *others)}) == 7
    assert key_of(base) == key_of(plan())
    before = key_of(base)
    monkeypatch.setattr(shelving, "code", lambda: "another version")
    assert key_of(base) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (("a", "b"), ("ab",)),
        ((("a",), "b"), (("a", "b"),)),
        (np.zeros(2), np.zeros((2, 1))),
        ({"a": 1}, {"a": 2}),
        (0.0, -0.0),
        ({1, 2}, {1, 3}),
    ],
)
def test_names_differ_where_values_differ(one: object, other: object):
    assert key_of(one) != key_of(other)


def test_what_has_no_name_is_refused():
    with pytest.raises(TypeError, match="no name for object"):
        key_of([object()])


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match=r"^folder: "):
        played(plan(), folder=tmp_path / "file")


# --- runs that end early ----------------------------------------------------------------

RUN = """
import sys, time
from pathlib import Path
from tests.sims.test_backends import plan
from sims.backends import Backend
from sims.rollouts import many

if __name__ == "__main__":
    many.SHARD_SECONDS = 0.0
    shelf = Path(sys.argv[1]) / "shards"
    put = many.Shelf.put
    def slowly(self, shard, arrays):
        put(self, shard, arrays)
        if len(list(shelf.glob("*.shard"))) == 2:
            print("two", flush=True)
            time.sleep(600)
    many.Shelf.put = slowly
    many.played(plan(), Backend(kind=sys.argv[2], workers=int(sys.argv[3])), folder=shelf.parent)
"""


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_ended_goes_on(ended_by: signal.Signals, alone: Rollout, tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(RUN)
    run = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), "here", "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    watchdog = threading.Timer(PATIENCE, run.kill)
    watchdog.start()
    assert run.stdout is not None
    assert run.stdout.readline() == "two\n"
    run.send_signal(ended_by)
    _, errors = run.communicate()
    watchdog.cancel()
    assert run.returncode != 0
    if ended_by == signal.SIGINT:
        assert "interrupted; " in errors
        assert "run the same again to go on" in errors
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "shards").glob("*.shard")}
    assert len(kept) == 2
    told: list[str] = []
    assert same(played(plan(), folder=tmp_path, told=told.append), alone)
    assert told == [f"2 of 5 replications were found in {tmp_path / 'shards'}"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_worker_that_dies_is_told_and_what_came_before_is_kept(
    alone: Rollout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = []
    with pytest.raises(UnavailableError, match="a worker process died"):
        for place, result in Backend(kind="loky", workers=2).run(jobs.dies_at_three, [0, 1, 2, 3]):
            found.append(place)
            assert place == result
    assert set(found) <= {0, 1, 2}

    def dies(_: Backend, function: Callable[[Shard], Track], todo: list[Shard]) -> Results:
        yield 0, function(todo[0])
        raise UnavailableError("a worker process died")

    with monkeypatch.context() as patched:
        patched.setattr(Backend, "run", dies)
        patched.setattr(many, "SHARD_SECONDS", 0.0)
        message = "1 of 5 replications are kept in .*; run the same again to go on"
        with pytest.raises(UnavailableError, match=message):
            played(plan(), folder=tmp_path)
        with pytest.raises(UnavailableError, match="nothing was kept, since no folder was given"):
            played(plan())
    assert same(played(plan(), folder=tmp_path, told=lambda _: None), alone)


def test_an_error_of_a_job_comes_as_it_is():
    for how in (Backend(), Backend(kind="loky", workers=2)):
        with pytest.raises(InvalidInputError, match=r"^jobs\[\d\]: is bad$"):
            list(how.run(jobs.fails, [0, 1, 2]))


def test_results_need_not_all_be_taken():
    found = Backend(kind="loky", workers=2).run(jobs.same, list(range(50)))
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert sorted(Backend(kind="loky", workers=2).run(jobs.same, [1, 2])) == [(0, 1), (1, 2)]


def test_a_worker_of_another_version_is_refused():
    with pytest.raises(UnavailableError, match="another version"):
        many._play(plan(), "other", None, Shard(0, 1))


# --- what is asked ----------------------------------------------------------------------


def test_what_is_not_asked_is_filled_in():
    assert Backend.of() == Backend(kind="here", workers=1)
    assert Backend.of(3) == Backend(kind="loky", workers=3)
    assert Backend.of(1) == Backend(kind="here")
    assert Backend.of(2, "dask").kind == "dask"
    assert Backend.of(None, None, "tcp://there:8786").kind == "dask"
    assert Backend.of(None, "loky").workers >= 1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "spark"}, "backend: 'spark' is none of here, loky, dask, ray"),
    "none": ({"workers": 0}, r"workers: must be a whole number in \[1, 1,024\], got 0"),
    "many": ({"kind": "loky", "workers": 10**6}, "workers: must be"),
    "here": ({"workers": 2}, "backend: here is one process"),
    "address": ({"kind": "loky", "scheduler": "tcp://x:1"}, "scheduler: goes with"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_go_together_is_told(name: str):
    given, message = BAD[name]
    with pytest.raises(InvalidInputError, match=message):
        Backend(**given)


@pytest.mark.parametrize("kind", ["ray", "dask"])
def test_what_is_not_installed_is_told_with_how_to(kind: str, monkeypatch: pytest.MonkeyPatch):
    def none_of(name: str) -> object:
        return None if name in ("ray", "dask", "distributed") else find_spec(name)

    monkeypatch.setattr(backends, "find_spec", none_of)
    with pytest.raises(InvalidInputError, match=rf"not installed here: pip install .*\[{kind}\]"):
        Backend(kind=kind)


def test_a_scheduler_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(backends, "CONNECT_SECONDS", 0.5)
    how = Backend(kind="dask", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(UnavailableError, match=r"dask gave up: .*127\.0\.0\.1:9"):
        list(how.run(jobs.same, [1]))


def test_the_command_goes_on_in_processes(tmp_path: Path):
    words = ["simulate", "--preset", "stationary", "--customers", "200", "--replications", "3"]
    words += ["--out", str(tmp_path)]
    first = CliRunner().invoke(app, [*words, "--workers", "2"], env={"COLUMNS": "100"})
    assert first.exception is None, first.output
    figures = (tmp_path / "rollout.json").read_bytes()
    again = CliRunner().invoke(app, words, env={"COLUMNS": "100"})
    assert again.exception is None
    assert "3 of 3 replications were found" in again.output
    assert (tmp_path / "rollout.json").read_bytes() == figures
    bad = CliRunner().invoke(
        app, [*words, "--publish-every", "9", "--through-server", "--workers", "2"]
    )
    assert isinstance(bad.exception, BanditError)
    assert "goes without --through-server" in str(bad.exception)


def test_the_front_door_takes_workers_and_a_folder(alone: Rollout, tmp_path: Path):
    of = catalogue.preset("stationary")
    seen: list[tuple[int, int]] = []
    found = rollout(
        of.spec,
        of.world,
        {"ts": "thompson"},
        customers=300,
        replications=5,
        workers=2,
        folder=tmp_path,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert same(found, alone)
    assert seen[-1] == (4_500, 4_500)


# --- compiled code on disk --------------------------------------------------------------


def test_two_that_compile_at_once_do_not_share_a_file(tmp_path: Path):
    """As two processes would: each has files of its own over the same folder."""
    path = tmp_path / "twice.py"
    path.write_text("def doubled(x):\n    return x + x\n")
    one, other = _files(path), _files(path)
    arrived, go_on = threading.Event(), threading.Event()
    save = one._save_index

    def slowly(overloads: object) -> None:
        arrived.set()
        go_on.wait(PATIENCE)
        save(overloads)

    one._save_index = slowly
    first = threading.Thread(target=one.save, args=("of floats", "compiled for floats"))
    first.start()
    assert arrived.wait(PATIENCE)
    second = threading.Thread(target=other.save, args=("of ints", "compiled for ints"))
    second.start()
    second.join(1.0)  # by now it waits for the first, or has gone ahead
    go_on.set()
    first.join()
    second.join()
    kept = _files(path)
    assert kept.load("of floats") == "compiled for floats"
    assert kept.load("of ints") == "compiled for ints"


def _files(path: Path) -> Any:  # noqa: ANN401  numba's own
    given: dict[str, Any] = {"__name__": "twice"}
    exec(compile(path.read_text(), str(path), "exec"), given)  # noqa: S102
    dispatcher: Any = kernel(given["doubled"])
    dispatcher._cache._impl.locator.ensure_cache_path()
    return dispatcher._cache._cache_file


def test_nothing_of_joblibs_settings_is_left_behind():
    with parallel_config("threading"):
        found = Backend(kind="loky", workers=2).run(jobs.threads, [0, 1])
        assert all(pid != os.getpid() for _, (*_, pid) in found)
