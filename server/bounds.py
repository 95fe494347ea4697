"""Limits that hold before a message is read.

Two bytes can stand for an empty message that takes a hundred in memory, so a request of a few
megabytes could ask for hundreds. Lists, which no request may fill with more than a batch, are
therefore counted in the bytes, before anything is made of them: the outermost ones, and those of
parts that are large enough to matter.
"""

from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from google.protobuf.message import Message

from bandit.errors import InvalidInputError

HARMLESS = 8_192
"""Bytes of a message that can not hold enough to matter."""
MOST_ITEMS = 1_100
"""Messages in a list of a request; what a batch may hold, and some to be told of."""

AnyDescriptor = Any
"""A message's descriptor; the two that protobuf has share no type."""

_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5


def check_counts(kind: type[Message], data: bytes) -> None:
    """Refuse a message of which a list holds too many messages, or one within does.

    Bytes that are no message are left to whoever reads them.

    Raises
    ------
    InvalidInputError
        With the list's path.
    """
    if len(data) > HARMLESS:
        with suppress(IndexError):
            _check(kind.DESCRIPTOR, data, 0, len(data))


def _check(kind: AnyDescriptor, data: bytes, at: int, end: int) -> None:
    """Count the lists of the message that stands in a part of the bytes."""
    parts = _parts(kind)
    counts: dict[int, int] = {}
    while parts and at < end:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == _LENGTH:
            size, at = _varint(data, at)
            if (part := parts.get(key >> 3)) is not None:
                path = part.name
                if part.is_list:
                    n = counts[key] = counts.get(key, 0) + 1
                    if n > MOST_ITEMS:
                        raise InvalidInputError(f"holds more than {MOST_ITEMS}", field=path)
                    path = f"{path}[{n - 1}]"
                if size > HARMLESS:
                    try:
                        _check(part.kind, data, at, min(at + size, end))
                    except InvalidInputError as error:
                        raise error.under(path) from None
            at += size
        elif wire == _VARINT:
            _, at = _varint(data, at)
        elif wire in (_EIGHT, _FOUR):
            at += 8 if wire == _EIGHT else 4
        else:  # groups, which no message here has
            raise InvalidInputError(f"these bytes are no {kind.name}")


class _Part(NamedTuple):
    """A field that is a list of messages, or a message with lists somewhere within."""

    name: str
    kind: AnyDescriptor
    is_list: bool


@cache
def _parts(kind: AnyDescriptor) -> dict[int, _Part]:
    """Give the fields that may hold many messages, by number; no message here holds itself."""
    return {
        field.number: _Part(field.name, field.message_type, field.is_repeated)
        for field in kind.fields
        if field.message_type is not None and (field.is_repeated or _parts(field.message_type))
    }


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of variable length; give it and the place behind it."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value = shift = 0
    while byte >= 128:
        value |= (byte & 127) << shift
        shift += 7
        at += 1
        byte = data[at]
    return value | byte << shift, at + 1
