"""What is seen of every call: how it ended, how long it took, and a line where that is not well."""

import logging
from collections.abc import Callable
from time import perf_counter
from typing import Any

from google.rpc import status_pb2

from server.counters import Counters
from server.status import CODES
from server.tracing import Span, Tracing

log = logging.getLogger(__name__)

Reply = Callable[[bytes | status_pb2.Status], None]

_OURS = {"UNKNOWN", "INTERNAL", "DATA_LOSS", "UNAVAILABLE", "DEADLINE_EXCEEDED"}
"""Codes that are the server's fault or its load's; all others are the caller's."""

_PAUSE = 1.0
"""Seconds between two lines about one method and code; the metrics count them all."""


class Watch:
    """Looks at the calls of one method.

    Parameters
    ----------
    method
        Such as ``DecisionService/Decide``.
    counters
        Where calls are counted.
    slow
        Seconds from which on a call is logged.
    tracing
        Where spans go; None for nowhere.
    """

    def __init__(
        self, method: str, counters: Counters, slow: float, tracing: Tracing | None = None
    ) -> None:
        self._method = method
        self._tally = counters.method(method)
        self._slow = slow
        self._tracing = tracing
        self._quiet: dict[str, float] = {}

    @property
    def is_tracing(self) -> bool:
        """Whether calls become spans."""
        return self._tracing is not None

    def over(self, reply: Reply, context: Any) -> Reply:  # noqa: ANN401  grpc's
        """Begin to watch a call; give what it replies through.

        A call is counted and logged before its reply leaves, so that whoever was answered, and
        a server that stops after its last reply, find it told.
        """
        if self._tracing is not None:
            span = self._tracing.call(self._method, context.invocation_metadata())
            return _Traced(self, reply, span)
        began = perf_counter()

        def watched(answer: bytes | status_pb2.Status) -> None:
            self.ended(answer, perf_counter() - began)
            reply(answer)

        return watched

    def within(self, work: Callable[..., None]) -> Callable[..., None]:
        """Let ``work(data, context, reply, ...)`` run inside of the call's span."""

        def traced(data: bytes, context: Any, reply: Reply, *rest: Any) -> None:  # noqa: ANN401
            if self._tracing is None or not isinstance(reply, _Traced):
                work(data, context, reply, *rest)
            else:
                with self._tracing.inside(reply.span):
                    work(data, context, reply, *rest)

        return traced

    def shed(self) -> None:
        """Count a call that found the server full."""
        self._tally.turned_away()

    def ended(self, answer: bytes | status_pb2.Status, seconds: float) -> str:
        """Count a call, and log it if it failed or was slow; give its code."""
        code = "OK" if isinstance(answer, bytes) else CODES[answer.code].name
        self._tally.ended(code, seconds)
        if code != "OK" or seconds >= self._slow:
            self._log(code, seconds)
        return code

    def _log(self, code: str, seconds: float) -> None:
        now = perf_counter()
        if now < self._quiet.get(code, 0.0):  # under a flood a line for each would be the load
            return
        self._quiet[code] = now + _PAUSE
        level = logging.WARNING if code == "OK" or code in _OURS else logging.INFO
        what = "slow request" if code == "OK" else "failed request"
        fields = {"method": self._method, "code": code, "duration_ms": round(seconds * 1e3, 3)}
        log.log(level, what, extra=fields)


class _Traced:
    """A reply that ends a span."""

    def __init__(self, watch: Watch, reply: Reply, span: Span) -> None:
        self.span = span
        self._watch = watch
        self._reply = reply
        self._began = perf_counter()

    def __call__(self, answer: bytes | status_pb2.Status) -> None:
        self.span.end(self._watch.ended(answer, perf_counter() - self._began))
        self._reply(answer)
