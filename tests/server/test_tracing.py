"""Traces show what led to what: call, commit, fold, publication; and cost nothing when off."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bandit.errors import InvalidInputError
from server import app, tracing
from server.pb import bandit_pb2 as pb
from server.tracing import Tracing
from tests.server.harness import Clock, Peer, decide_request, eventually, refusal

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
TRACED = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
UNTRACED = (("traceparent", f"00-{TRACE}-{PARENT}-00"),)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Peer]:
    """Run a server that traces what its callers trace, and nothing else by itself."""
    monkeypatch.setattr(
        app, "open_tracing", lambda _, share: Tracing(spans, share, is_batched=False)
    )
    with Peer(tmp_path, clock=Clock()) as running:
        yield running


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name.endswith(name)]


def test_a_call_continues_its_callers_trace_and_a_commit_links_to_it(
    traced: Peer, spans: InMemorySpanExporter
):
    name = traced.create("traced")
    traced.decisions.Decide(decide_request(name, "r1"), metadata=TRACED)
    traced.decisions.Decide(decide_request(name, "r2"), metadata=UNTRACED)
    traced.decide(name, "r3")
    eventually(lambda: named(spans, "commit"))
    [call] = named(spans, "DecisionService/Decide")
    assert call.parent is not None
    assert f"{call.parent.trace_id:032x}" == TRACE
    assert f"{call.parent.span_id:016x}" == PARENT
    assert dict(call.attributes or {}) == {
        "rpc.system.name": "grpc",
        "rpc.method": "bandit.v1.DecisionService/Decide",
        "rpc.response.status_code": "OK",
    }
    [commit] = named(spans, "commit")
    assert [link.context.span_id for link in commit.links] == [call.context.span_id]
    assert commit.parent is not None
    assert commit.parent.span_id == call.context.span_id


def test_calls_in_threads_are_linked_too(traced: Peer, spans: InMemorySpanExporter):
    name = traced.create("batched")
    requests = [decide_request(name, f"r{i}") for i in range(20)]
    traced.decisions.BatchDecide(pb.BatchDecideRequest(requests=requests), metadata=TRACED)
    eventually(lambda: named(spans, "commit"))
    [call], [commit] = named(spans, "BatchDecide"), named(spans, "commit")
    assert [link.context.span_id for link in commit.links] == [call.context.span_id]
    assert (commit.attributes or {})["bandit.rows"] == 20


def test_a_failed_call_is_an_error_and_leaves_nothing_behind(
    traced: Peer, spans: InMemorySpanExporter
):
    request = decide_request("nowhere", "r1")
    refusal(traced.decisions.Decide, request, metadata=TRACED)
    eventually(lambda: named(spans, "Decide"))
    [call] = named(spans, "Decide")
    assert not call.status.is_ok
    assert (call.attributes or {})["rpc.response.status_code"] == "NOT_FOUND"
    assert not call.events, "an exception's text could quote the request"


def test_a_publication_links_to_its_folds_and_its_commit_to_it(
    tmp_path: Path, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(app, "open_tracing", lambda *_: Tracing(spans, 1.0, is_batched=False))
    with Peer(tmp_path, clock=Clock()) as peer:
        assert peer.clock is not None
        name = peer.create("taught")
        for i in range(5):
            peer.decide(name, f"r{i}")
        peer.clock.advance(4_000)
        peer.learn(name)
        eventually(lambda: any(named(spans, "publish")))
        [fold], [publish] = named(spans, "fold"), named(spans, "publish")
        assert dict(fold.attributes or {}) == {"bandit.experiment": name, "bandit.outcomes": 5}
        assert [link.context.span_id for link in publish.links] == [fold.context.span_id]
        assert (publish.attributes or {})["bandit.snapshot_version"] == 1

        def stored() -> bool:
            links = [link for commit in named(spans, "commit") for link in commit.links]
            return publish.context.span_id in {link.context.span_id for link in links}

        eventually(stored)


@pytest.mark.parametrize("sent", ["", "nonsense", "00-zz-zz-01", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_traceparent_that_is_none_is_ignored(
    traced: Peer, spans: InMemorySpanExporter, sent: str
):
    name = traced.create("bad header")
    traced.decisions.Decide(decide_request(name, "r1"), metadata=(("traceparent", sent),))
    assert not spans.get_finished_spans()


def test_spans_hold_nothing_that_a_request_said(traced: Peer, spans: InMemorySpanExporter):
    name = traced.create("discreet")
    request = decide_request(name, "request-private", customer_id="customer-private")
    decision = traced.decisions.Decide(request, metadata=TRACED).decision
    reward = pb.RecordRewardRequest(
        experiment=name, event_id="event-private", decision_id=decision.decision_id, name="none"
    )
    refusal(traced.decisions.RecordReward, reward, metadata=TRACED)
    eventually(lambda: named(spans, "RecordReward"))
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "private" not in told
    assert decision.decision_id not in told


def test_nothing_is_imported_where_nothing_is_traced(tmp_path: Path):
    code = (
        "import sys; from server.app import Server; from server.settings import Settings\n"
        f"server = Server(Settings(database='sqlite:///{tmp_path / 'b.db'}', port=0))\n"
        "server.database.close()\n"
        "print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout == "[]\n", done.stderr


def test_traces_without_the_extra_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    with pytest.raises(InvalidInputError, match="banditctl\\[traces\\]") as caught:
        tracing.open_tracing("http://127.0.0.1:4317", 1.0)
    assert caught.value.field == "trace_endpoint"


def test_an_endpoint_makes_spans_and_a_collector_that_is_gone_holds_nobody_up():
    made = tracing.open_tracing("http://127.0.0.1:1", 1.0)
    assert made is not None
    made.call("DecisionService/Decide", ()).end("OK")
    made.close()
