"""Log lines can be read by machines, say what failed, and never what a request said."""

import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import logs
from server.counters import Counters
from server.pb import bandit_pb2_grpc as stubs
from server.watching import Watch
from tests.server.harness import decide_request, refusal

ROOT = Path(__file__).parents[2]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def restored() -> Iterator[None]:
    """Put the root logger back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def record(text: str, *args: object, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("server.x", logging.WARNING, __file__, 1, text, args, None)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@given(st.text(), st.text(), st.floats(allow_nan=False))
def test_every_line_is_one_json_object(text: str, name: str, duration: float):
    made = record("%s", text, experiment=name, duration_ms=duration)
    line = logs.JsonFormatter().format(made)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["event"], told["experiment"], told["level"]) == (text, name, "warning")
    assert told["duration_ms"] == duration
    assert len(logs.TextFormatter().format(made).splitlines()) >= 1


def test_fields_that_are_not_known_do_not_leave():
    made = record("failed", customer_id="someone", context={"age": 41}, code="X", reply="t")
    for formatter in (logs.JsonFormatter(), logs.TextFormatter()):
        line = formatter.format(made)
        assert "someone" not in line
        assert "41" not in line.split("failed")[1]
    assert set(json.loads(logs.JsonFormatter().format(made))) == {
        "time", "level", "logger", "event", "code",
    }  # fmt: skip


def test_an_unexpected_error_shows_where_and_not_what():
    made = record("a bug")
    try:
        try:
            {}["customer-private"]
        except KeyError as error:
            raise RuntimeError("age is 41-private") from error
    except RuntimeError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    for formatter in (logs.JsonFormatter(), logs.TextFormatter()):
        line = formatter.format(made)
        assert "private" not in line
        assert "RuntimeError" in line
        assert "KeyError" in line
        assert "test_an_unexpected_error_shows_where_and_not_what" in line


@pytest.mark.usefixtures("restored")
def test_text_on_a_terminal_and_json_elsewhere():
    for stream, is_json in ((Terminal(), False), (io.StringIO(), True)):
        logs.configure("info", "auto", stream)
        logging.getLogger("server.x").info("ready", extra={"experiment": "e"})
        line = stream.getvalue()
        assert line.startswith("{") == is_json
        assert ("experiment=e" in line) != is_json
    stream = Terminal()
    logs.configure("warning", "json", stream)
    logging.getLogger("server.x").info("not this")
    logging.getLogger("server.x").warning("this")
    assert json.loads(stream.getvalue())["event"] == "this"


@pytest.mark.usefixtures("restored")
def test_a_flood_of_one_line_is_one_line(monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    now = [100.0]
    monkeypatch.setattr("server.logs.time.monotonic", lambda: now[0])
    log = logging.getLogger("server.x")
    for _ in range(1_000):
        log.warning("no room")
    log.warning("another")
    now[0] += logs.PAUSE
    log.warning("no room")
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(t["event"], t.get("suppressed")) for t in told] == [
        ("no room", None),
        ("another", None),
        ("no room", 999),
    ]


def test_slow_and_failed_calls_are_logged(caplog: pytest.LogCaptureFixture):
    from bandit.errors import NotFoundError, UnavailableError
    from server import status

    caplog.set_level(logging.INFO)
    watch = Watch("DecisionService/Decide", Counters(), slow=0.5)
    watch.ended(b"", 0.1)
    watch.ended(b"", 0.7)
    watch.ended(status.to_status(NotFoundError("private")), 0.1)
    for _ in range(10):
        watch.ended(status.to_status(UnavailableError("private")), 0.1)
    told = [
        (r.getMessage(), r.levelname, r.code, r.duration_ms)  # type: ignore[attr-defined]
        for r in caplog.records
    ]
    assert told == [
        ("slow request", "WARNING", "OK", 700.0),
        ("failed request", "INFO", "NOT_FOUND", 100.0),
        ("failed request", "WARNING", "UNAVAILABLE", 100.0),
    ]


def test_a_server_writes_json_and_nothing_of_its_requests(tmp_path: Path):
    command = [sys.executable, "-m", "server", "serve", "--port", "0", "--metrics-port", "0"]
    command += ["--database", f"sqlite:///{tmp_path / 'b.db'}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BANDIT_")}
    with (tmp_path / "log").open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            cwd=tmp_path,
            env={**environment, "PYTHONPATH": str(ROOT)},
        )
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("serving on ").strip()
            with grpc.insecure_channel(address) as channel:
                request = decide_request("private-name", "private-request")
                refusal(stubs.DecisionServiceStub(channel).Decide, request)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(60)
            process.stdout.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert status == 0, lines
    assert [line for line in lines if not line.startswith("{")] == []
    told = [json.loads(line) for line in lines]
    events = [t["event"] for t in told]
    assert events[-1] == "stopped", events
    assert {"ready", f"serving on {address}"} <= set(events)
    assert any(event.startswith("metrics on 127.0.0.1:") for event in events)
    [failed] = [t for t in told if t["event"] == "failed request"]
    assert failed["code"] == "NOT_FOUND"
    assert failed["method"] == "DecisionService/Decide"
    assert failed["duration_ms"] > 0
    assert "private" not in "".join(lines)
