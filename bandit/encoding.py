"""Posteriors as bytes: a documented, checksummed format without code in it.

``docs/reference/posterior-format.md`` describes it byte by byte.
"""

import hashlib
import json
import math
import struct

import numpy as np

from bandit.errors import CorruptionError
from bandit.kernels.compiling import Floats
from bandit.posterior import Posterior

MAGIC = b"BNDP"
FORMAT = 1
_DIGEST = 32


def to_bytes(posterior: Posterior) -> bytes:
    """Write a posterior: magic, format, header length, JSON header, arrays, BLAKE2b-256.

    Equal posteriors give equal bytes.
    """
    arrays = posterior.arrays()
    header = json.dumps(
        {
            "kind": posterior.kind,
            "seq": posterior.seq,
            "count": posterior.count,
            "arrays": {name: array.shape for name, array in arrays.items()},
        },
        sort_keys=True,
    ).encode()
    body = b"".join(
        [
            MAGIC,
            struct.pack("<HI", FORMAT, len(header)),
            header,
            *(array.astype("<f8").tobytes() for array in arrays.values()),
        ]
    )
    return body + hashlib.blake2b(body, digest_size=_DIGEST).digest()


def digest(data: bytes) -> bytes:
    """Give the checksum that closes a written posterior, 32 bytes."""
    return data[-_DIGEST:]


def load(posterior: Posterior, data: bytes) -> None:
    """Read written bytes into a posterior of the same experiment.

    Raises
    ------
    CorruptionError
        If a byte changed, the format is newer, or the model is another one.
    """
    try:
        _load(posterior, data)
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise CorruptionError(f"a stored posterior can not be read: {error}") from None


def _load(posterior: Posterior, data: bytes) -> None:
    body, checksum = data[:-_DIGEST], data[-_DIGEST:]
    if len(data) < _DIGEST + 10 or hashlib.blake2b(body, digest_size=_DIGEST).digest() != checksum:
        raise CorruptionError("the checksum of a stored posterior does not match its bytes")
    form, length = struct.unpack("<HI", body[4:10])
    if body[:4] != MAGIC or form > FORMAT:
        raise CorruptionError(f"a stored posterior has format {form}, this release reads {FORMAT}")
    header = json.loads(body[10 : 10 + length])
    seq, count = (_whole(header[name]) for name in ("seq", "count"))
    if header["kind"] != posterior.kind:
        raise CorruptionError(f"a stored posterior is {header['kind']}, not {posterior.kind}")
    arrays: dict[str, Floats] = {}
    at = 10 + length
    if "clock" in header["arrays"] and posterior.half_life is None:
        raise CorruptionError("a stored posterior has a half-life, which does not fit this one")
    for name in posterior.arrays():
        shape = tuple(map(_whole, header["arrays"].get(name, ())))
        size = 8 * math.prod(shape)
        if len(body) < at + size:
            raise CorruptionError(f"a stored posterior lacks {name!r}")
        arrays[name] = np.frombuffer(body[at : at + size], dtype="<f8").reshape(shape)
        at += size
    posterior.load(arrays, seq=seq, count=count)


def _whole(value: object) -> int:
    """Read a number of the header that counts something."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise CorruptionError(f"a stored posterior has {str(value)[:40]!r} where a number belongs")
    return value
