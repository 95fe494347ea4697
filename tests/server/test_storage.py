"""The log: dense whatever happens, and every job whole or not at all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from bandit import spec_file
from bandit.decision import Reason
from bandit.errors import BanditError, ConflictError, NotFoundError
from bandit.outcome import OutcomeRule, Reward
from server import catalogue, ledger, lessons, storage
from server.database import Database
from server.ledger import Closed
from server.schema import ENTRIES, decisions, experiments, outcomes
from server.storage import DecisionRow, EventRow, Logged, Recorded
from tests.server.harness import Store

SECOND = 1_000_000
RULE = OutcomeRule(
    rewards=(Reward(name="click"), Reward(name="buy", bounds=(0, 100), terminal=True)),
    window=10,
    early=2,
)
SILENT = OutcomeRule(rewards=RULE.rewards, window=10, silence="ignore")


@pytest.fixture(scope="module")
def database(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    made = Database(store(tmp_path_factory.mktemp("storage")))
    yield made
    made.close()


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    """Give a transaction that is undone in the end."""
    with database.writer.connect() as opened:
        yield opened


@pytest.fixture
def one(connection: Connection) -> int:
    return add(connection, "one")


def add(connection: Connection, name: str) -> int:
    row = catalogue.add_experiment(
        connection, tenant="t", name=name, request_id=name, spec="{}", now=0
    )
    return int(row.id)


def row(
    request: str, *, content: str = "", at: int = 0, reason: int = Reason.POLICY
) -> DecisionRow:
    return DecisionRow(
        decision_id=request.encode().rjust(16, b"\0"),
        request_id=request,
        request_hash=(content or request).encode().rjust(16, b"\0"),
        customer=b"\0" * 16,
        context=b"",
        exclusions=None,
        time_zone="",
        action=0,
        propensity=0.5,
        traffic_group=1,
        reason=reason,
        snapshot_version=0,
        decided_at=at,
        propensities=None,
    )


def test_a_request_is_known_again_whatever_its_text_leaves_to_defaults(connection: Connection):
    """As an older release stored it: what follows from other parts is not spelled out."""
    old = (
        '{"actions":{"channels":["x"],"variants":["a"]},"name":"e",'
        '"outcome":{"rewards":[{"name":"r"}],"window":60}}'
    )
    new = spec_file.to_json(spec_file.parse(old, "json"))
    whole = {"tenant": "t", "name": "e", "request_id": "1", "now": 0}
    stored = catalogue.add_experiment(connection, **whole, spec=old)  # type: ignore[arg-type]
    assert catalogue.add_experiment(connection, **whole, spec=new) == stored  # type: ignore[arg-type]
    for other in (new.replace("60", "61"), "{}"):
        with pytest.raises(ConflictError):
            catalogue.add_experiment(connection, **whole, spec=other)  # type: ignore[arg-type]


def event(
    event_id: str, request: str, *, name: str = "click", value: float = 1.0, at: int = 0
) -> EventRow:
    return EventRow(event_id, request.encode().rjust(16, b"\0"), name, value, at, at)


def decide(connection: Connection, experiment: int, *rows: DecisionRow) -> list[Logged]:
    [logged] = storage.append_decisions(connection, experiment, [rows])
    return logged


def record(
    connection: Connection, experiment: int, *events: EventRow, rule: OutcomeRule = RULE
) -> list[Recorded | BanditError]:
    now = max(e.received_at for e in events)
    return ledger.append_events(connection, experiment, rule, events, now)


def sequence(connection: Connection, experiment: int) -> list[int]:
    """Every place that is taken, over all kinds of entries."""
    found: list[int] = []
    for table in ENTRIES:
        chosen = select(table.c.seq).where(table.c.experiment_id == experiment)
        found += connection.execute(chosen).scalars()
    return sorted(found)


def next_seq(connection: Connection, experiment: int) -> int:
    chosen = select(experiments.c.next_seq).where(experiments.c.id == experiment)
    return int(connection.execute(chosen).scalar_one())


def is_dense(connection: Connection, experiment: int) -> bool:
    n = next_seq(connection, experiment) - 1
    return sequence(connection, experiment) == list(range(1, n + 1))


REQUESTS = st.integers(0, 6).map("r{}".format)
APPENDED = st.tuples(st.just("decide"), st.lists(st.lists(REQUESTS, max_size=4), max_size=3))
TOLD = st.tuples(
    st.just("reward"),
    st.lists(
        st.tuples(st.integers(0, 9).map("e{}".format), REQUESTS, st.sampled_from(["click", "buy"])),
        max_size=6,
    ),
)
CLOSED = st.tuples(st.just("close"), st.integers(0, 12))


@given(history=st.lists(APPENDED | TOLD | CLOSED, max_size=12), data=st.data())
def test_any_history_is_dense(database: Database, history: list[tuple], data: st.DataObject):
    now = 0
    with database.writer.connect() as connection:
        ids = [add(connection, "one"), add(connection, "two")]
        for kind, what in history:
            experiment = data.draw(st.sampled_from(ids))
            if kind == "decide":
                jobs = [[row(request, at=now) for request in job] for job in what]
                storage.merge_decisions(connection, experiment, jobs)
            elif kind == "reward":
                told = [event(e, request, name=name, at=now) for e, request, name in what]
                if told:
                    record(connection, experiment, *told)
            else:
                now += what * SECOND
                ledger.close_due(connection, experiment, RULE, now)
            assert all(is_dense(connection, i) for i in ids)
        for i in ids:
            settled = connection.execute(
                select(outcomes.c.decision_seq).where(outcomes.c.experiment_id == i)
            ).scalars()
            assert len(set(rows := list(settled))) == len(rows)


@given(jobs=st.lists(st.lists(REQUESTS, unique=True, max_size=3), max_size=3))
def test_merge_of_new_ids_is_append(database: Database, jobs: list[list[str]]):
    seen: set[str] = set()
    fresh = [[r for r in job if not (r in seen or seen.add(r))] for job in jobs]
    rows = [[row(r) for r in job] for job in fresh]
    with database.writer.connect() as connection:
        ids = [add(connection, "one"), add(connection, "two")]
        appended = storage.append_decisions(connection, ids[0], rows) if seen else rows
        merged = storage.merge_decisions(connection, ids[1], rows)
        assert merged == appended
        assert next_seq(connection, ids[0]) == next_seq(connection, ids[1])


def test_append_gives_every_row_the_next_place(connection: Connection, one: int):
    first = storage.append_decisions(connection, one, [[row("a"), row("b")], [row("c")]])
    assert [[logged.seq for logged in job] for job in first] == [[1, 2], [3]]
    assert decide(connection, one, row("d"))[0].seq == 4


def test_append_refuses_a_known_request(connection: Connection, one: int):
    decide(connection, one, row("a"))
    with pytest.raises(IntegrityError):
        decide(connection, one, row("a"))


def test_experiments_do_not_share_ids_or_places(connection: Connection, one: int):
    two = add(connection, "two")
    assert decide(connection, one, row("a"))[0].seq == decide(connection, two, row("a"))[0].seq == 1
    [refused] = record(connection, add(connection, "three"), event("e", "a"))
    assert isinstance(refused, NotFoundError)


def test_merge_gives_what_is_stored(connection: Connection, one: int):
    [first] = decide(connection, one, row("a", content="same"))
    again = row("a", content="same", at=99)._replace(propensity=0.125, action=7)
    [[known, fresh, twice]] = storage.merge_decisions(
        connection, one, [[again, row("b"), row("b")]]
    )
    assert known == first._replace(repeated=True)
    assert (fresh.seq, fresh.repeated, twice.seq, twice.repeated) == (2, False, 2, True)


def test_a_request_may_come_twice_in_one_transaction(connection: Connection, one: int):
    [[first], [again]] = storage.merge_decisions(connection, one, [[row("a")], [row("a")]])
    assert (first.seq, first.repeated, again.seq, again.repeated) == (1, False, 1, True)


def test_a_job_with_a_conflict_is_stored_not_at_all(connection: Connection, one: int):
    decide(connection, one, row("a"))
    before, refused, after = storage.merge_decisions(
        connection, one, [[row("b")], [row("c"), row("a", content="other"), row("d")], [row("e")]]
    )
    assert isinstance(refused, ConflictError)
    assert refused.field == "requests[1].request_id"
    assert ([one.seq for one in before], [one.seq for one in after]) == ([2], [3])
    stored = connection.execute(
        select(decisions.c.request_id).where(decisions.c.experiment_id == one)
    ).scalars()
    assert set(stored) == {"a", "b", "e"}


def test_a_conflict_inside_one_job(connection: Connection, one: int):
    [refused] = storage.merge_decisions(connection, one, [[row("a"), row("a", content="other")]])
    assert isinstance(refused, ConflictError)
    assert sequence(connection, one) == []


def test_merging_nothing_takes_no_place(connection: Connection, one: int):
    assert storage.merge_decisions(connection, one, []) == []
    assert storage.merge_decisions(connection, one, [[]]) == [[]]
    assert next_seq(connection, one) == 1


def test_a_duplicate_event_is_absorbed(connection: Connection, one: int):
    decide(connection, one, row("a"), row("b"))
    [first, same] = record(connection, one, event("e", "a"), event("e", "a", at=SECOND))
    [again] = record(connection, one, event("e", "a", at=9 * SECOND))
    assert first == Recorded(3, late=False, duplicate=False)
    assert same == again == first._replace(duplicate=True)
    assert next_seq(connection, one) == 4


@pytest.mark.parametrize(
    "other",
    [event("e", "a", value=0.5), event("e", "a", name="buy"), event("e", "b")],
    ids=["value", "name", "decision"],
)
def test_a_reused_event_id_is_refused(connection: Connection, one: int, other: EventRow):
    decide(connection, one, row("a"), row("b"))
    record(connection, one, event("e", "a"))
    [refused] = record(connection, one, other)
    assert isinstance(refused, ConflictError)
    assert refused.field == "event_id"
    assert next_seq(connection, one) == 4


def test_an_event_that_is_refused_does_not_refuse_the_others(connection: Connection, one: int):
    decide(connection, one, row("a"))
    first, unknown, last = record(
        connection, one, event("e1", "a"), event("e2", "nobody"), event("e3", "a")
    )
    assert isinstance(unknown, NotFoundError)
    assert (first, last) == (
        Recorded(2, late=False, duplicate=False),
        Recorded(3, late=False, duplicate=False),
    )


def test_a_terminal_event_closes_the_outcome(connection: Connection, one: int):
    decide(connection, one, row("a"))
    [click, buy, after] = record(
        connection,
        one,
        event("e1", "a"),
        event("e2", "a", name="buy", value=40.0),
        event("e3", "a"),
    )
    assert [click.late, buy.late, after.late] == [False, False, True]
    assert [click.seq, buy.seq, after.seq] == [2, 3, 5]
    assert storage.find_outcome(connection, one, 1) == 41.0
    learned = lessons.read(connection, one, RULE, after=0)
    assert [(e.seq, e.value) for e in learned.rows] == [(4, 41.0)]


def test_a_second_terminal_event_is_late(connection: Connection, one: int):
    decide(connection, one, row("a"))
    results = record(connection, one, *(event(e, "a", name="buy") for e in ("e1", "e2")))
    assert [r.late for r in results] == [False, True]
    assert sequence(connection, one) == [1, 2, 3, 4]


def test_a_terminal_event_out_of_the_window_closes_nothing(connection: Connection, one: int):
    decide(connection, one, row("a", at=20 * SECOND))
    [early] = record(connection, one, event("e", "a", name="buy", at=17 * SECOND))
    assert early.late
    assert storage.find_outcome(connection, one, 1) is None


@pytest.mark.parametrize(
    ("at", "late"), [(-2.0, False), (-2.000001, True), (10.0, False), (10.000001, True)]
)
def test_the_window_and_the_early_tolerance_are_inclusive(
    connection: Connection,
    one: int,
    at: float,
    late: bool,  # noqa: FBT001
):
    decide(connection, one, row("a", at=100 * SECOND))
    [told] = record(connection, one, event("e", "a", at=round((100 + at) * SECOND)))
    assert told.late is late


def test_close_due_settles_in_log_order(connection: Connection, one: int):
    decide(connection, one, *(row(f"r{i}", at=i * SECOND) for i in range(4)))
    record(connection, one, event("e", "r1", at=2 * SECOND))
    assert ledger.close_due(connection, one, RULE, 10 * SECOND - 1) == Closed(0, 0, 10 * SECOND)
    assert ledger.close_due(connection, one, RULE, 12 * SECOND) == Closed(3, 3, 13 * SECOND)
    assert [storage.find_outcome(connection, one, i) for i in range(1, 5)] == [0.0, 1.0, 0.0, None]
    assert ledger.close_due(connection, one, RULE, 99 * SECOND).settled == 1
    assert ledger.close_due(connection, one, RULE, 99 * SECOND) == Closed(0, 0, None)
    assert is_dense(connection, one)


def test_close_due_goes_on_where_its_limit_stopped(connection: Connection, one: int):
    decide(connection, one, *(row(f"r{i}") for i in range(5)))
    found = [ledger.close_due(connection, one, RULE, 11 * SECOND, limit=2) for _ in range(3)]
    assert [closed.settled for closed in found] == [2, 2, 1]
    assert sequence(connection, one) == list(range(1, 11))


def test_events_after_the_close_are_late_and_change_nothing(connection: Connection, one: int):
    decide(connection, one, row("a"))
    ledger.close_due(connection, one, RULE, 11 * SECOND)
    [late] = record(connection, one, event("e", "a", name="buy", at=5 * SECOND))
    assert late.late
    assert storage.find_outcome(connection, one, 1) == 0.0


def test_what_a_terminal_event_closed_is_not_closed_again(connection: Connection, one: int):
    decide(connection, one, row("a"), row("b"))
    record(connection, one, event("e", "a", name="buy", value=7.0))
    assert ledger.close_due(connection, one, RULE, 11 * SECOND)[:2] == (2, 1)
    assert storage.find_outcome(connection, one, 1) == 7.0


def test_ignored_silence_leaves_no_outcome_but_closes(connection: Connection, one: int):
    decide(connection, one, row("a"), row("b"))
    record(connection, one, event("e1", "b"), rule=SILENT)
    assert ledger.close_due(connection, one, SILENT, 11 * SECOND)[:2] == (2, 1)
    [late] = record(connection, one, event("e2", "a", name="buy", at=5 * SECOND), rule=SILENT)
    assert late.late
    assert storage.find_outcome(connection, one, 1) is None
    assert storage.find_outcome(connection, one, 2) == 1.0
    assert is_dense(connection, one)


@pytest.mark.parametrize("reason", Reason)
def test_only_what_was_chosen_is_learned(connection: Connection, one: int, reason: Reason):
    decide(connection, one, row("a", reason=reason), row("b", reason=reason))
    record(connection, one, event("e", "a", name="buy"))
    ledger.close_due(connection, one, RULE, 11 * SECOND)
    learned = lessons.read(connection, one, RULE, after=0)
    assert (
        len(learned.rows)
        == learned.read
        == (2 if reason in (Reason.POLICY, Reason.RANDOM_GROUP) else 0)
    )
    assert storage.find_outcome(connection, one, 1) == 1.0


def test_an_experiment_that_is_gone_takes_no_place(connection: Connection):
    with pytest.raises(NotFoundError):
        storage.take_seq(connection, 12_345, 1)


def test_places_are_taken_in_the_transaction(store: Store, tmp_path: Path):
    made = Database(store(tmp_path))
    with made.writer.begin() as connection:
        one = add(connection, "one")
    with made.writer.connect() as connection:
        storage.take_seq(connection, one, 5)
        connection.rollback()
    with made.writer.begin() as connection:
        assert storage.take_seq(connection, one, 1) == 1
    made.close()


def test_a_clock_that_ran_fast_holds_nobody_up(connection: Connection, one: int):
    decide(connection, one, row("a", at=50 * SECOND), row("b", at=0))
    assert ledger.close_due(connection, one, RULE, 9 * SECOND) == Closed(0, 0, 10 * SECOND)
    assert ledger.close_due(connection, one, RULE, 11 * SECOND).settled == 2
    assert is_dense(connection, one)
