"""The content of a published file, or an error that says which file this is not."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Mapping
from pathlib import Path

from bandit.errors import InvalidInputError

_LARGEST = 64 * 2**20
"""Bytes that are read of any file, so that one that swells when it is unpacked does no harm."""


def read(path: Path, what: str, known: Mapping[str, str]) -> tuple[str, bytes]:
    """Read a file, compressed or not; give which of the known ones it is, and its content.

    Parameters
    ----------
    what
        What the file should be, with its verb: ``is not the Hillstrom campaign``.
    known
        sha256 of the uncompressed content, by name.

    Raises
    ------
    InvalidInputError
        If the file can not be read, or its content is none of the known ones.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST)
        if data[:2] == b"\x1f\x8b":
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(_LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(f"can not be read: {error}", field=str(path)) from None
    found = hashlib.sha256(data).hexdigest()
    for name, digest in known.items():
        if digest == found:
            return name, data
    raise InvalidInputError(
        f"{what}: sha256 of the content is {found}, expected {' or '.join(known.values())}",
        field=str(path),
    )
