"""Limits that hold before a message is read.

Two bytes can stand for an empty message that takes a hundred in memory, so a request of a few
megabytes could ask for hundreds. The outermost lists, which no request may fill with more than a
batch, are therefore counted in the bytes, before anything is made of them.
"""

from functools import cache

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from bandit.errors import InvalidInputError

HARMLESS = 8_192
"""Bytes of a message that can not hold enough to matter."""
MOST_ITEMS = 1_100
"""Messages in the outermost lists of a request; what a batch may hold, and some to be told of."""

_VARINT, _EIGHT, _LENGTH, _FOUR = 0, 1, 2, 5


def check_counts(kind: type[Message], data: bytes) -> None:
    """Refuse a message whose outermost lists hold too many messages.

    Bytes that are no message are left to whoever reads them.

    Raises
    ------
    InvalidInputError
        With the list's name.
    """
    if len(data) <= HARMLESS:
        return
    lists = _lists(kind.DESCRIPTOR)
    if not lists:
        return
    count = at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            wire = key & 7
            if wire == _LENGTH:
                size, at = _varint(data, at)
                at += size
                if (name := lists.get(key >> 3)) is not None:
                    count += 1
                    if count > MOST_ITEMS:
                        raise InvalidInputError(f"holds more than {MOST_ITEMS}", field=name)
            elif wire == _VARINT:
                _, at = _varint(data, at)
            elif wire in (_EIGHT, _FOUR):
                at += 8 if wire == _EIGHT else 4
            else:  # groups, which no message here has
                raise InvalidInputError(f"these bytes are no {kind.DESCRIPTOR.name}")
    except IndexError:
        return


@cache
def _lists(kind: Descriptor) -> dict[int, str]:
    """Give the repeated fields of messages, by number."""
    return {
        field.number: field.name
        for field in kind.fields
        if field.is_repeated and field.message_type is not None
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
