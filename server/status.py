"""Domain error to gRPC status: one table, applied in one place.

No RPC calls ``context.abort``: it raises a bare ``Exception``, which transactions and
other layers cannot tell from a bug (grpc/grpc#23514).
"""

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from bandit.errors import (
    BanditError,
    ChangedError,
    ConflictError,
    CorruptionError,
    DeadlineError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    StateError,
    UnauthenticatedError,
    UnavailableError,
)

DOMAIN = "bandit.v1"
DETAILS_KEY = "grpc-status-details-bin"

STATUS: dict[type[BanditError], tuple[grpc.StatusCode, str]] = {
    InvalidInputError: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_INPUT"),
    NotFoundError: (grpc.StatusCode.NOT_FOUND, "NOT_FOUND"),
    ConflictError: (grpc.StatusCode.ALREADY_EXISTS, "CONFLICTING_REUSE"),
    ChangedError: (grpc.StatusCode.ABORTED, "ETAG_CHANGED"),
    StateError: (grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE"),
    UnauthenticatedError: (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    ForbiddenError: (grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"),
    UnavailableError: (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"),
    DeadlineError: (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED"),
    CorruptionError: (grpc.StatusCode.DATA_LOSS, "CORRUPT_STORAGE"),
}
"""Code, and the stable name in ErrorInfo, of every domain error."""


def to_status(error: BanditError) -> status_pb2.Status:
    """Give the rich status of a domain error: ErrorInfo, the field's path, when to retry."""
    code, reason = STATUS[type(error)]
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_short(error.field, 256), description=_short(error.message)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, UnavailableError):
        pause = duration_pb2.Duration(nanos=100_000_000)
        details.append(error_details_pb2.RetryInfo(retry_delay=pause))
    return _status(code, str(error), details)


def internal() -> status_pb2.Status:
    """Give the status of a bug: it tells nothing."""
    info = error_details_pb2.ErrorInfo(reason="INTERNAL", domain=DOMAIN)
    return _status(grpc.StatusCode.INTERNAL, "internal error", [info])


def code_of(error: BanditError) -> int:
    """Give the number of a domain error's code."""
    return int(STATUS[type(error)][0].value[0])


def reason_of(error: BanditError) -> str:
    """Give the stable name of a domain error."""
    return STATUS[type(error)][1]


def _short(text: str, most: int = 1_000) -> str:
    """Cut a text so that trailers, which grpc bounds at 8 kB, have room for it twice."""
    return text.encode()[:most].decode(errors="ignore")


def _status(code: grpc.StatusCode, message: str, details: list[Message]) -> status_pb2.Status:
    status = status_pb2.Status(code=code.value[0], message=_short(message))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
"""Codes by number."""
