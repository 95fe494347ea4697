"""Starts a server that ends itself at a named point, or breaks a promise: for tests alone.

``python -m tests.crash.launcher POINT COUNT serve ...`` replaces functions of the server in
this process before it starts, so nothing of this is in the server that people run.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from server import __main__ as command_line
from server import convert, edits, ledger, revisions, storage
from server.live import Live
from server.writer import AppendDecisions, Writer

Cross = Callable[[], None]


class Crossing:
    """Ends the process, as a crash would, when it is crossed for the n-th time."""

    def __init__(self, count: int) -> None:
        self._left = count
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def _wrapped(owner: Any, name: str, *, before: Cross | None = None, after: Cross | None = None):  # noqa: ANN401
    original = getattr(owner, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if before is not None:
            before()
        result = original(*args, **kwargs)
        if after is not None:
            after()
        return result

    setattr(owner, name, replacement)


def before_begin(cross: Cross) -> None:
    """Jobs were taken from the queue, and no transaction is open."""
    _wrapped(Writer, "_transact", before=cross)


def after_insert(cross: Cross) -> None:
    """Decisions were inserted, and the rest of the transaction was not."""
    _wrapped(storage, "append_decisions", after=cross)


def between_event_and_outcome(cross: Cross) -> None:
    """Stop where a terminal event was inserted, and the outcome it closes was not."""
    _wrapped(ledger._INSERT_OUTCOME, "execute", before=cross)


def before_commit(cross: Cross) -> None:
    """All is written, and COMMIT was not said."""
    original = Writer._transaction

    @contextmanager
    def transaction(self: Writer) -> Iterator[Any]:
        with original(self) as connection:
            yield connection
            cross()

    Writer._transaction = transaction


def after_commit(cross: Cross) -> None:
    """All is durable, and nobody was told."""
    _wrapped(Writer, "_transact", after=cross)


def before_answer(cross: Cross) -> None:
    """All is durable, some were perhaps told, and this one's answer is being made."""
    _wrapped(convert, "decision", before=cross)


def before_publish(cross: Cross) -> None:
    """Stop where a snapshot is durable, and decisions still read the one before."""
    _wrapped(Live, "publish", before=cross)


POINTS: dict[str, Callable[[Cross], None]] = {
    point.__name__: point
    for point in (
        before_begin,
        after_insert,
        between_event_and_outcome,
        before_commit,
        after_commit,
        before_answer,
        before_publish,
    )
}


def amid_edit(cross: Cross) -> None:
    """Stop where an edit's snapshot and revision are written, and its audit entry is not."""
    _wrapped(revisions, "add", after=cross)


def after_edit(cross: Cross) -> None:
    """Stop where an edit is durable, and decisions still read the old specification."""
    _wrapped(Live, "catch_up", before=cross)


def before_edit_answer(cross: Cross) -> None:
    """Stop where decisions are made with an edit, and its editor was not told."""
    _wrapped(edits, "revision_message", before=cross)


EDIT_POINTS: dict[str, Callable[[Cross], None]] = {
    point.__name__: point for point in (amid_edit, after_edit, before_edit_answer)
}


def _answering_early(then: Callable[[list[Any]], None]) -> None:
    """Tell everybody before COMMIT, then go on as told."""
    original, transact = Writer._transaction, Writer._transact
    waiting: list[Any] = []

    def remembering(self: Writer, jobs: list[Any], append: Any) -> None:  # noqa: ANN401
        waiting[:] = jobs
        transact(self, jobs, append)

    @contextmanager
    def transaction(self: Writer) -> Iterator[Any]:
        with original(self) as connection:
            yield connection
            for job in waiting:
                job.on_done()
                job.on_done = _nothing
            then(waiting)

    Writer._transact, Writer._transaction = remembering, transaction


def answer_first(count: int) -> None:
    """Break the promise: answer before COMMIT; the n-th transaction then never ends."""
    left = count

    def then(jobs: list[Any]) -> None:
        nonlocal left
        left -= any(isinstance(job, AppendDecisions) for job in jobs)
        if left <= 0:
            threading.Event().wait()

    _answering_early(then)


def answer_early(milliseconds: int) -> None:
    """Break the promise: answer a while before COMMIT, as on a slow disk."""
    _answering_early(lambda _: time.sleep(milliseconds / 1e3))


def _nothing() -> None:
    """Tell nobody a second time."""


BROKEN: dict[str, Callable[[int], None]] = {
    "answer_first": answer_first,
    "answer_early": answer_early,
}


def main() -> None:
    """Replace what was named, then be the server."""
    name, count = sys.argv[1], int(sys.argv[2])
    if name in POINTS | EDIT_POINTS:
        (POINTS | EDIT_POINTS)[name](Crossing(count))
    else:
        BROKEN[name](count)
    sys.argv = [sys.argv[0], *sys.argv[3:]]
    command_line.main()


if __name__ == "__main__":
    main()
