"""No error of ours may reach a client as UNKNOWN, and every status says what to do."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from bandit.errors import (
    BanditError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from server.client import _ERRORS
from server.pb import bandit_pb2 as pb
from server.status import CODES, DOMAIN, STATUS, code_of, internal, reason_of, to_status
from tests.server.harness import Peer, decide_request, refusal


def errors(kind: type[BanditError] = BanditError) -> set[type[BanditError]]:
    """Every class below the root of the tree."""
    return set().union(*({sub} | errors(sub) for sub in kind.__subclasses__()))


EVERY = sorted(errors(), key=lambda kind: kind.__name__)


def details(status: status_pb2.Status, kind: type) -> list:
    found = []
    for packed in status.details:
        one = kind()
        if packed.Unpack(one):
            found.append(one)
    return found


def test_every_error_has_a_status():
    assert set(STATUS) == errors()


def test_codes_and_names_are_stable():
    assert {kind.__name__: (code.name, reason) for kind, (code, reason) in STATUS.items()} == {
        "InvalidInputError": ("INVALID_ARGUMENT", "INVALID_INPUT"),
        "NotFoundError": ("NOT_FOUND", "NOT_FOUND"),
        "ConflictError": ("ALREADY_EXISTS", "CONFLICTING_REUSE"),
        "ChangedError": ("ABORTED", "ETAG_CHANGED"),
        "StateError": ("FAILED_PRECONDITION", "WRONG_STATE"),
        "UnauthenticatedError": ("UNAUTHENTICATED", "UNAUTHENTICATED"),
        "ForbiddenError": ("PERMISSION_DENIED", "ROLE_MISSING"),
        "UnavailableError": ("UNAVAILABLE", "UNAVAILABLE"),
        "DeadlineError": ("DEADLINE_EXCEEDED", "DEADLINE_PASSED"),
        "CorruptionError": ("DATA_LOSS", "CORRUPT_STORAGE"),
    }


def test_the_client_raises_what_the_server_raised():
    raised = {code: kind for kind, (code, _) in STATUS.items()}
    assert {**raised, grpc.StatusCode.CANCELLED: UnavailableError} == _ERRORS


@pytest.mark.parametrize("kind", EVERY)
def test_every_status_has_error_info(kind: type[BanditError]):
    status = to_status(kind("went wrong", field="a.b[3]"))
    [info] = details(status, error_details_pb2.ErrorInfo)
    [bad] = details(status, error_details_pb2.BadRequest)
    [violation] = bad.field_violations
    assert (info.reason, info.domain) == (reason_of(kind("")), DOMAIN)
    assert (violation.field, violation.description) == ("a.b[3]", "went wrong")
    assert status.code == code_of(kind(""))
    assert CODES[status.code] is STATUS[kind][0]
    assert status.message == "a.b[3]: went wrong"


@pytest.mark.parametrize("kind", EVERY)
def test_only_unavailable_says_retry(kind: type[BanditError]):
    retry = details(to_status(kind("went wrong")), error_details_pb2.RetryInfo)
    assert bool(retry) is (kind is UnavailableError)
    assert all(one.retry_delay.ToMilliseconds() > 0 for one in retry)


def test_without_a_path_there_is_no_bad_request():
    assert details(to_status(NotFoundError("gone")), error_details_pb2.BadRequest) == []


@pytest.mark.parametrize("letter", ["x", "\N{EURO SIGN}", "\N{GRINNING FACE}"])
def test_a_status_fits_into_metadata(letter: str):
    """A gRPC peer drops metadata of more than 8 KB; the message is percent-encoded there."""
    status = to_status(InvalidInputError(letter * 100_000, field=letter * 100_000))
    encoded = sum(1 if 32 <= byte < 127 else 3 for byte in status.message.encode())
    assert encoded + status.ByteSize() * 4 / 3 < 8_000


def test_a_bug_tells_nothing():
    status = internal()
    [info] = details(status, error_details_pb2.ErrorInfo)
    assert (status.code, status.message) == (13, "internal error")
    assert (info.reason, info.domain) == ("INTERNAL", DOMAIN)


METHODS = {
    "GetExperiment": pb.GetExperimentRequest(name="x"),
    "GetReport": pb.GetReportRequest(name="x"),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_bug_is_internal_over_the_wire(peer: Peer, method: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*names: object) -> None:
        raise ZeroDivisionError(f"the secret of {names}")

    monkeypatch.setattr(peer.server.live, "find", fail)
    found = refusal(getattr(peer.experiments, method), METHODS[method])
    assert found[:3] == (grpc.StatusCode.INTERNAL, "internal error", "INTERNAL")
    decided = refusal(peer.decisions.Decide, decide_request("x", "r"))
    assert decided[:3] == (grpc.StatusCode.INTERNAL, "internal error", "INTERNAL")


@pytest.mark.parametrize("kind", EVERY)
def test_every_error_over_the_wire(
    peer: Peer, kind: type[BanditError], monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object) -> None:
        raise kind("went \N{EURO SIGN} wrong\nhere", field="some.field")

    monkeypatch.setattr(peer.server.live, "find", fail)
    for found in (
        refusal(peer.experiments.GetReport, pb.GetReportRequest(name="x")),
        refusal(peer.decisions.Decide, decide_request("x", "r")),
    ):
        assert found.code is STATUS[kind][0]
        assert found.message == "some.field: went \N{EURO SIGN} wrong\nhere"
        assert (found.reason, found.field) == (STATUS[kind][1], "some.field")
        assert found.retry is (kind is UnavailableError)


def test_an_unknown_method_is_unimplemented(peer: Peer):
    found = refusal(peer.raw("DecisionService/Guess"), b"")
    assert found.code is grpc.StatusCode.UNIMPLEMENTED
