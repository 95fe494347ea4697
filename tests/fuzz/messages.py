"""Messages of any type, made from its descriptor, and bytes that were one before.

Nothing here knows a request: a new RPC or field is fuzzed as soon as it is in the contract.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

DEPTH = 5
NASTY = ("", "\0", "a\0b", "\n", "\N{GRINNING FACE}" * 70, "x" * 300, "'; drop table decisions")
NUMBERS = (0.0, -0.0, 1.0, 0.5, -1.0, 41.0, math.nan, math.inf, -math.inf, 1e308, 5e-324)
_LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}

Words = Mapping[str, Sequence[str]]
"""Texts that mean something, by the name of the field they belong to; "" has those of all."""


def draw_message(draw: Any, message: Message, words: Words, depth: int = 0) -> None:  # noqa: ANN401
    """Fill a message with fields of chance."""
    fields = message.DESCRIPTOR.fields
    for field in fields:
        if draw(st.integers(0, 3)):  # most are set: a request that lacks one ends early
            draw_field(draw, message, field, words, depth)


def draw_field(
    draw: Any,  # noqa: ANN401
    message: Message,
    field: FieldDescriptor,
    words: Words,
    depth: int = 0,
) -> None:
    """Set one field to something of its type; add to a list, or empty it."""
    if depth > DEPTH:
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        _draw_entry(draw, message, field, words, depth)
    elif field.is_repeated:
        if draw(st.integers(0, 9)) == 0:
            message.ClearField(field.name)
            return
        for _ in range(draw(st.integers(1, 3))):
            if field.message_type is not None:
                draw_message(draw, getattr(message, field.name).add(), words, depth + 1)
            else:
                getattr(message, field.name).append(draw(scalar(field, words)))
    elif field.message_type is not None:
        part = getattr(message, field.name)
        part.SetInParent()
        draw_message(draw, part, words, depth + 1)
    else:
        setattr(message, field.name, draw(scalar(field, words)))


def _draw_entry(
    draw: Any,  # noqa: ANN401
    message: Message,
    field: FieldDescriptor,
    words: Words,
    depth: int,
) -> None:
    key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    entries = getattr(message, field.name)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(scalar(key, words))
        if value.message_type is not None:
            draw_message(draw, entries[name], words, depth + 1)
        else:
            entries[name] = draw(scalar(value, words))


def scalar(field: FieldDescriptor, words: Words) -> st.SearchStrategy[Any]:
    """Give values of one field: likely ones, nasty ones, any."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING and field.type != FieldDescriptor.TYPE_BYTES:
        likely = words.get(field.name, words[""])
        return st.sampled_from(likely) | st.sampled_from([*likely, *words[""], *NASTY]) | _TEXT
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=64)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return _NUMBER
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(-1, len(field.enum_type.values) + 1)
    low, high = _LIMITS[kind]
    return st.sampled_from([low, 0, 1, 2, high]) | st.integers(low, high)


_TEXT = st.text(max_size=12)
_NUMBER = st.sampled_from(NUMBERS) | st.floats()


def parts(message: Message) -> list[Message]:
    """Give a message and all messages in it."""
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            inner = list(value.values())
        else:
            inner = list(value) if field.is_repeated else [value]
        for one in inner:
            if isinstance(one, Message):
                found += parts(one)
    return found


def spoil(data: bytes, edits: bytes) -> bytes:
    """Change bytes, as told by other bytes: four for each change."""
    changed = bytearray(data)
    for i in range(0, len(edits) - 3, 4):
        kind, high, low, byte = edits[i : i + 4]
        at = (high << 8 | low) % (len(changed) + 1)
        if kind % 5 == 0:
            changed[at : at + 1] = bytes([byte])
        elif kind % 5 == 1:
            changed[at:at] = bytes([byte])
        elif kind % 5 == 2:
            del changed[at : at + byte % 16]
        elif kind % 5 == 3:
            changed[at:at] = changed[at : at + byte]
        else:
            changed[at : at + 1] = bytes([(changed[at] if at < len(changed) else 0) ^ byte])
    return bytes(changed)
