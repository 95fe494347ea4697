"""Randomness by name: every draw is a function of a secret and of what it is for.

A decision's draw is keyed by the random part of its id, which is itself keyed by the
request: the same request gets the same draw whenever and wherever it is answered, and a
client that does not hold the secret can not steer it by choosing ids.
"""

import hashlib
import struct
from collections.abc import Iterable
from functools import lru_cache
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint8]
"""Names of 16 bytes, shape (n, 16)."""

Stream = NDArray[np.uint32]
"""Name of a Philox stream, shape (4,): two words of key, two of counter."""

_RANDOM_BITS = 0xFFF << 64 | (1 << 62) - 1
_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62


def keyed(secret: bytes, purpose: str, scope: str, name: bytes) -> bytes:
    """Give the 32-byte keyed BLAKE2b that stands for ``name`` in one purpose and scope.

    ``purpose`` and ``scope`` hold no NUL, so the parts can not be confused.

    Notes
    -----
    About a microsecond. Keyed BLAKE2 is a MAC by construction (RFC 7693, section 2.9).
    """
    state = _started(secret, purpose, scope).copy()
    state.update(name)
    return state.digest()


@lru_cache(maxsize=4096)
def _started(secret: bytes, purpose: str, scope: str) -> "hashlib.blake2b":
    key = hashlib.sha256(secret).digest()
    return hashlib.blake2b(f"{purpose}\0{scope}\0".encode(), key=key, digest_size=32)


def decision_id(secret: bytes, experiment: str, request_id: str, at_ms: int) -> UUID:
    """Give the id of the decision that answers a request.

    Parameters
    ----------
    at_ms
        Milliseconds since 1970: the leading 48 bits, so ids sort by time (RFC 9562, UUIDv7).

    Notes
    -----
    The other 74 bits depend on secret, experiment and request alone.

    Examples
    --------
    >>> a = decision_id(b"s", "welcome", "r1", 1_000)
    >>> b = decision_id(b"s", "welcome", "r1", 2_000)
    >>> a.version, a < b, a.int & 0xFFFF == b.int & 0xFFFF
    (7, True, True)
    """
    digest = int.from_bytes(keyed(secret, "decision", experiment, request_id.encode())[:16])
    time = (at_ms & (1 << 48) - 1) << 80
    return UUID(int=time | _VERSION_7 | _VARIANT | digest & _RANDOM_BITS)


def decision_stream(secret: bytes, experiment: str, decision: UUID) -> bytes:
    """Name the stream of one decision: 16 bytes, to be read as four ``uint32`` words."""
    return keyed(secret, "draw", experiment, (decision.int & _RANDOM_BITS).to_bytes(10))[:16]


def snapshot_stream(secret: bytes, experiment: str, seq: int) -> Stream:
    """Name the stream behind the sample bank of the snapshot at log position ``seq``."""
    return words(keyed(secret, "bank", experiment, struct.pack("<q", seq))[:16])


def words(names: bytes) -> NDArray[np.uint32]:
    """Read concatenated stream names as little-endian words, shape (4 n,)."""
    return np.frombuffer(names, dtype="<u4")


def customer_key(secret: bytes, tenant: str, customer_id: str) -> bytes:
    """Give the pseudonym under which a customer is known, 16 bytes."""
    return keyed(secret, "customer", tenant, customer_id.encode())[:16]


def group_point(secret: bytes, experiment: str, customer: bytes) -> int:
    """Give the customer's point among 2**32, which decides the traffic group."""
    return int.from_bytes(keyed(secret, "group", experiment, customer)[:4])


def decision_ids(secret: bytes, experiment: str, request_ids: Iterable[str], at_ms: int) -> Ids:
    """Give ``decision_id`` of many requests.

    Examples
    --------
    >>> many = decision_ids(b"s", "welcome", ["r1", "r2"], 1_000)
    >>> many[1].tobytes() == decision_id(b"s", "welcome", "r2", 1_000).bytes
    True
    """
    names = [request_id.encode() for request_id in request_ids]
    ids = _keyed_many(secret, "decision", experiment, names)
    ids[:, :6] = np.frombuffer((at_ms & (1 << 48) - 1).to_bytes(6), dtype=np.uint8)
    ids[:, 6] = 0x70 | ids[:, 6] & 0x0F
    ids[:, 8] = 0x80 | ids[:, 8] & 0x3F
    return ids


def decision_streams(secret: bytes, experiment: str, decisions: Ids) -> NDArray[np.uint32]:
    """Give the words of ``decision_stream`` of many decisions, shape (n, 4)."""
    random = decisions[:, 6:].copy()
    random[:, 0] &= 0x0F
    random[:, 2] &= 0x3F
    return words(_keyed_many(secret, "draw", experiment, split(random)).tobytes()).reshape(-1, 4)


def customer_keys(secret: bytes, tenant: str, customer_ids: Iterable[str]) -> Ids:
    """Give ``customer_key`` of many customers."""
    return _keyed_many(secret, "customer", tenant, [one.encode() for one in customer_ids])


def group_points(secret: bytes, experiment: str, customers: Ids) -> NDArray[np.uint32]:
    """Give ``group_point`` of many customers, shape (n,)."""
    names = _keyed_many(secret, "group", experiment, split(customers))
    return np.ascontiguousarray(names[:, :4]).view(">u4").ravel().astype(np.uint32)


def split(names: Ids) -> list[bytes]:
    """Give the rows of a table of bytes one by one."""
    data, width = names.tobytes(), names.shape[1]
    return [data[at : at + width] for at in range(0, len(data), width)]


def _keyed_many(secret: bytes, purpose: str, scope: str, names: Iterable[bytes]) -> Ids:
    """Give the first 16 bytes of ``keyed`` of many names; a microsecond each."""
    begin = _started(secret, purpose, scope).copy
    digests = []
    for name in names:
        state = begin()
        state.update(name)
        digests.append(state.digest())
    whole = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32)
    return whole[:, :16].copy()
