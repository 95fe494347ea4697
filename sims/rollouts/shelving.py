"""Finished shards of a piece of work in a folder, so that a run that ends early goes on.

A shard is a run of numbered parts, such as replications. Its arrays are one file, written aside and
renamed, so that there is a whole file or none. The name says which work and which parts; a digest
over all of it says that the bytes are what was written.
"""

import dataclasses
import enum
import hashlib
import io
import json
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from bandit.errors import InvalidInputError

Arrays = dict[str, Any]
"""Arrays by name."""

_ROOT = Path(__file__).parents[2]
_NAME = re.compile(r"(?P<key>[0-9a-f]{32})-(?P<first>\d+)-(?P<stop>\d+)\.shard")
_LIBRARIES = ("numpy", "scipy", "numba")


class Shard(NamedTuple):
    """Numbered parts ``first`` to ``stop - 1``."""

    first: int
    stop: int


class Found(NamedTuple):
    """What a folder holds.

    Attributes
    ----------
    shards
        Those of this work, without overlap, in order.
    notes
        What was not taken, and why: a sentence each.
    """

    shards: dict[Shard, Arrays]
    notes: list[str]


class Shelf:
    """The folder of one piece of work's shards; others may lie in it too.

    Parameters
    ----------
    folder
        Made if it is not there.
    key
        32 hexadecimal digits that name the work; see ``key_of``.

    Raises
    ------
    InvalidInputError
        If the folder can not be made.
    """

    def __init__(self, folder: Path, key: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInputError(f"{folder}: {error.strerror}", field="folder") from None
        self.folder = folder
        self.key = key

    def path(self, shard: Shard) -> Path:
        """Give where a shard is."""
        return self.folder / f"{self.key}-{shard.first:06d}-{shard.stop:06d}.shard"

    def put(self, shard: Shard, arrays: Mapping[str, Any]) -> None:
        """Write a shard: all of it or nothing.

        Raises
        ------
        InvalidInputError
            If it can not be written.
        """
        packed = io.BytesIO()
        np.savez(packed, **arrays)
        body = packed.getvalue()
        header = {"key": self.key, **shard._asdict(), "blake2b": self._digest(shard, body)}
        try:
            number, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            try:
                with os.fdopen(number, "wb") as file:
                    file.write(json.dumps(header).encode() + b"\n" + body)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(self.path(shard))
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise InvalidInputError(
                f"{self.folder}: can not be written: {error.strerror}", field="folder"
            ) from None

    def find(self, stop: int, check: Callable[[Shard, Arrays], bool]) -> Found:
        """Read what is there of parts 0 to ``stop - 1``.

        Damaged files get ``.damaged`` behind their names, so that they are told of only once.

        Parameters
        ----------
        check
            Whether the arrays are what a shard of this work holds.
        """
        named, strangers = self._listed()
        shards: dict[Shard, Arrays] = {}
        notes = []
        if strangers:
            notes.append(
                f"{strangers} shards in {self.folder} are of another plan, seed or version and "
                "are not taken"
            )
        done = 0
        for shard in named:
            if not done <= shard.first < shard.stop <= stop:
                continue  # the same parts in another split
            arrays = self._read(shard)
            if arrays is None or not check(shard, arrays):
                path = self.path(shard)
                path.replace(path.with_name(path.name + ".damaged"))
                notes.append(f"{path.name} is damaged and is computed anew")
                continue
            shards[shard] = arrays
            done = shard.stop
        return Found(shards, notes)

    def _listed(self) -> tuple[list[Shard], int]:
        shards, strangers = [], 0
        for path in self.folder.glob("*.shard"):
            named = _NAME.fullmatch(path.name)
            if named is None or named["key"] != self.key:
                strangers += 1
            else:
                shards.append(Shard(int(named["first"]), int(named["stop"])))
        return sorted(shards, key=lambda shard: (shard.first, -shard.stop)), strangers

    def _read(self, shard: Shard) -> Arrays | None:
        try:
            header, _, body = self.path(shard).read_bytes().partition(b"\n")
            told = json.loads(header)
            if told["blake2b"] != self._digest(shard, body):
                return None
            with np.load(io.BytesIO(body), allow_pickle=False) as packed:
                return dict(packed)
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None

    def _digest(self, shard: Shard, body: bytes) -> str:
        name = f"{self.key} {shard.first} {shard.stop}\n".encode()
        return hashlib.blake2b(name + body, digest_size=32).hexdigest()


def cut(gaps: list[Shard], size: int) -> list[Shard]:
    """Cut runs of parts into pieces of at most ``size``.

    >>> cut([Shard(0, 5), Shard(7, 8)], 2)
    [Shard(first=0, stop=2), Shard(first=2, stop=4), Shard(first=4, stop=5), Shard(first=7, stop=8)]
    """
    if size < 1:
        raise InvalidInputError(f"must be at least 1, got {size}", field="size")
    return [
        Shard(first, min(first + size, gap.stop))
        for gap in gaps
        for first in range(gap.first, gap.stop, size)
    ]


def gaps(done: list[Shard], stop: int) -> list[Shard]:
    """Give what is missing of parts 0 to ``stop - 1``, where ``done`` is in order.

    >>> gaps([Shard(1, 3), Shard(3, 4)], 6)
    [Shard(first=0, stop=1), Shard(first=4, stop=6)]
    """
    starts = [0, *(shard.stop for shard in done)]
    ends = [*(shard.first for shard in done), stop]
    return [Shard(a, b) for a, b in zip(starts, ends, strict=True) if a < b]


def key_of(work: object) -> str:
    """Name a piece of work by everything its results depend on: its values and this code.

    Parameters
    ----------
    work
        Dataclasses, mappings, sequences, arrays and plain values, nested at will.

    Raises
    ------
    TypeError
        If there is something else in it, whose value can not be told.
    """
    state = hashlib.blake2b(code().encode(), digest_size=16)
    for word in _words(work):
        state.update(len(word).to_bytes(8, "little") + word)
    return state.hexdigest()


@lru_cache
def code() -> str:
    """Name the code that computes: the sources of ``bandit`` and ``sims``, and the libraries."""
    state = hashlib.blake2b(digest_size=16)
    for package in ("bandit", "sims"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            name = path.relative_to(_ROOT).as_posix()
            state.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    told = [f"{name} {version(name)}" for name in _LIBRARIES]
    state.update(" ".join([*told, *map(str, sys.version_info[:2])]).encode())
    return state.hexdigest()


def _words(value: object) -> Iterator[bytes]:
    """Give bytes that differ where values differ; each word is told with its length."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        yield f"{type(value).__name__} {value!r}".encode()
    elif isinstance(value, enum.Enum | PurePath):
        yield f"{type(value).__name__} {value}".encode()
    elif isinstance(value, np.ndarray | np.generic):
        yield f"array {value.dtype.str} {value.shape}".encode()
        yield value.tobytes()
    elif dataclasses.is_dataclass(value):
        yield type(value).__qualname__.encode()
        for field in dataclasses.fields(value):
            yield field.name.encode()
            yield from _words(getattr(value, field.name))
    else:
        yield from _words_of_many(value)


def _words_of_many(value: object) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        yield f"mapping {len(value)}".encode()
        for pair in value.items():  # in order, which may matter
            yield from _words(pair)
    elif isinstance(value, list | tuple):
        yield f"sequence {len(value)}".encode()
        for one in value:
            yield from _words(one)
    elif isinstance(value, set | frozenset):
        yield f"set {len(value)}".encode()
        yield from sorted(b"\0".join(_words(one)) for one in value)
    else:
        raise TypeError(f"no name for {type(value).__name__}")
