"""OpenTelemetry traces: calls, commits, folds and publications, and what led to what.

Spans are made only where a server is told an endpoint. Many calls share one commit, and many
folds one publication: these are links, not parents. Attributes hold methods, codes, names of
experiments and counts, never what a message said.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import time_ns
from typing import TYPE_CHECKING, Any

from bandit.errors import InvalidInputError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span as OtelSpan
    from opentelemetry.trace import SpanContext

    from server.writer import Job

MOST_LINKS = 128
"""Links of a span; a commit of more calls tells their number."""
_PACKAGE = "bandit.v1"


class Span:
    """One call's span."""

    __slots__ = ("otel",)

    def __init__(self, otel: "OtelSpan") -> None:
        self.otel = otel

    def end(self, code: str) -> None:
        """End it with a status code."""
        from opentelemetry.trace import StatusCode

        self.otel.set_attribute("rpc.response.status_code", code)
        if code != "OK":
            self.otel.set_status(StatusCode.ERROR, code)
        self.otel.end()


class Tracing:
    """Makes spans and sends them away in the background.

    Parameters
    ----------
    exporter
        Where spans go.
    share
        Of the calls that bring no decision of their own about being traced.
    is_batched
        Whether spans gather before they are sent; a test wants them at once.

    Raises
    ------
    InvalidInputError
        If the extra ``traces`` is not installed.
    """

    def __init__(self, exporter: "SpanExporter", share: float, *, is_batched: bool = True) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "banditctl"}),
            sampler=ParentBasedTraceIdRatio(share),
            shutdown_on_exit=False,
        )
        processor = BatchSpanProcessor if is_batched else SimpleSpanProcessor
        self._provider.add_span_processor(processor(exporter))
        self._tracer = self._provider.get_tracer("server")
        self._propagator = TraceContextTextMapPropagator()
        self._folds: dict[int, list[SpanContext]] = {}  # the learner's thread alone

    def close(self) -> None:
        """Send what waits, then end."""
        self._provider.shutdown()

    def call(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> Span:
        """Begin the span of a call, under the caller's own (W3C traceparent) if it sent one."""
        from opentelemetry.trace import SpanKind

        carrier = {k: v for k, v in metadata if isinstance(v, str) and k.startswith("trace")}
        parent = self._propagator.extract(carrier)
        attributes = {"rpc.system.name": "grpc", "rpc.method": f"{_PACKAGE}.{method}"}
        name = attributes["rpc.method"]
        return Span(
            self._tracer.start_span(name, parent, kind=SpanKind.SERVER, attributes=attributes)
        )

    @contextmanager
    def inside(self, span: Span) -> Iterator[None]:
        """Let what this thread does belong to a span, without ending it."""
        from opentelemetry.trace import use_span

        with use_span(span.otel, end_on_exit=False, record_exception=False):
            yield

    @staticmethod
    def waits(job: "Job[Any]") -> None:
        """Note on a job whose it is: that of this thread's span."""
        from opentelemetry.trace import get_current_span

        context = get_current_span().get_span_context()
        if context.is_valid and context.trace_flags.sampled:
            job.trace = context

    def committed(self, jobs: "Sequence[Job[Any]]", seconds: float) -> None:
        """Make the span of a transaction: child of the first it made durable, linked to all."""
        from opentelemetry.trace import NonRecordingSpan, set_span_in_context

        contexts = [job.trace for job in jobs if hasattr(job, "trace")]
        if not contexts:
            return
        end = time_ns()
        span = self._tracer.start_span(
            "commit",
            set_span_in_context(NonRecordingSpan(contexts[0])),  # traced because that one is
            links=_links(contexts),
            start_time=end - int(seconds * 1e9),
            attributes={
                "bandit.jobs": len(jobs),
                "bandit.rows": sum(job.rows for job in jobs),
                "bandit.traced_jobs": len(contexts),
            },
        )
        span.end(end)

    @contextmanager
    def fold(self, experiment_id: int, name: str, outcomes: int) -> Iterator[None]:
        """Trace the folding of outcomes; the publication that follows is linked to it."""
        with self._tracer.start_as_current_span(
            "fold",
            attributes={"bandit.experiment": name, "bandit.outcomes": outcomes},
            record_exception=False,
        ) as span:
            yield
        if span.get_span_context().trace_flags.sampled:
            kept = self._folds.setdefault(experiment_id, [])
            kept.append(span.get_span_context())
            del kept[:-MOST_LINKS]

    @contextmanager
    def publication(self, experiment_id: int, name: str, version: int) -> Iterator[None]:
        """Trace a publication; the commit that stores it is linked to it."""
        with self._tracer.start_as_current_span(
            "publish",
            links=_links(self._folds.pop(experiment_id, [])),
            attributes={"bandit.experiment": name, "bandit.snapshot_version": version},
            record_exception=False,
        ):
            yield


def _links(contexts: Sequence["SpanContext"]) -> list[Any]:
    from opentelemetry.trace import Link

    return [Link(context) for context in contexts[:MOST_LINKS]]


def open_tracing(endpoint: str | None, share: float) -> Tracing | None:
    """Give what sends spans to an OTLP endpoint over gRPC; None without one.

    Raises
    ------
    InvalidInputError
        If the extra ``traces`` is not installed.
    """
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise InvalidInputError(
            "needs the extra: pip install 'banditctl[traces]'", field="trace_endpoint"
        ) from None
    is_plain = not endpoint.startswith("https:")
    return Tracing(OTLPSpanExporter(endpoint=endpoint, insecure=is_plain, timeout=2), share)
