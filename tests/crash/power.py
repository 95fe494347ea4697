"""A disk that forgets: what SQLite wrote and never synced may be lost, in part or torn.

Killing a process never tests ``synchronous``: the kernel keeps what was written. So this
replaces writing, truncating and syncing of the very SQLite that the server runs on, by a copy
of its file methods with three others in it, and keeps beside every file what a disk would
hold after a power cut: all up to the last sync, and any part of what came after.

The layouts are those of ``sqlite3.h``: stable since SQLite 3.5, and only ever extended.
"""

import _sqlite3
import ctypes
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

SECTOR = 512

_WRITE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
)
_TRUNCATE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)
_SYNC = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
_OPEN = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_void_p,  # the name: SQLite keeps more before and behind it, so it is passed as it is
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_int),
)
_DELETE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)


class _Methods(ctypes.Structure):
    """``sqlite3_io_methods``, version 3."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("close", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("write", _WRITE),
        ("truncate", _TRUNCATE),
        ("sync", _SYNC),
        ("others", ctypes.c_void_p * 13),
    )


class _File(ctypes.Structure):
    """``sqlite3_file``: the first field of every open file."""

    _fields_ = (("methods", ctypes.POINTER(_Methods)),)


class _System(ctypes.Structure):
    """``sqlite3_vfs``, version 3."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("file_size", ctypes.c_int),
        ("longest_path", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("open", _OPEN),
        ("delete", _DELETE),
        ("others", ctypes.c_void_p * 14),
    )


class _Change(NamedTuple):
    """A write at a place, or (without data) a new end."""

    at: int
    data: bytes | None


@dataclass
class _Kept:
    """One file on the disk: what is safe, and what came after, in order."""

    safe: bytearray = field(default_factory=bytearray)
    unsafe: list[_Change] = field(default_factory=list)

    def sync(self) -> None:
        _apply(self.safe, self.unsafe)
        self.unsafe.clear()


def _apply(content: bytearray, changes: list[_Change]) -> None:
    for at, data in changes:
        if data is None:
            del content[at:]
            continue
        content.extend(bytes(max(at - len(content), 0)))
        content[at : at + len(data)] = data


def _nothing() -> None:
    """Nobody looks."""


class Disk:
    """Files of one folder as a disk keeps them.

    Attributes
    ----------
    syncs
        How many there were.
    on_change
        Called after every write and truncation, amid whatever SQLite is doing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._files: dict[str, _Kept] = {}
        self._lock = threading.Lock()
        self.syncs = 0
        self.on_change: Callable[[], None] = _nothing

    def holds(self, name: str) -> bool:
        """Whether a file is one of this disk's."""
        return name.startswith(self._folder) and not name.endswith("-shm")

    def opened(self, name: str) -> None:
        """Take in a file; what it holds when it is first opened is safe."""
        with self._lock:
            if name not in self._files:
                path = Path(name)
                content = path.read_bytes() if path.exists() else b""
                self._files[name] = _Kept(bytearray(content))

    def change(self, name: str, at: int, data: bytes | None) -> None:
        """Take in a write or a truncation that is not yet safe."""
        with self._lock:
            self._files[name].unsafe.append(_Change(at, data))
        self.on_change()

    def sync(self, name: str) -> None:
        """Make safe what was changed."""
        with self._lock:
            self._files[name].sync()
            self.syncs += 1

    def deleted(self, name: str) -> None:
        """Take out a file; SQLite syncs the folder where it must not come back."""
        with self._lock:
            self._files.pop(name, None)

    def cut(self) -> "Image":
        """Give the disk at this moment, as a power cut would find it."""
        with self._lock:
            return Image(
                {
                    Path(name).name: (bytes(kept.safe), list(kept.unsafe))
                    for name, kept in self._files.items()
                }
            )


class Image(NamedTuple):
    """Files at the moment of a power cut: what is safe, and what may or may not be there."""

    files: dict[str, tuple[bytes, list[_Change]]]

    def write(self, folder: Path, chance: random.Random | None = None) -> None:
        """Write the files as they may be found afterwards.

        Parameters
        ----------
        chance
            Which unsafe writes survive, in which order, and where they tear, at a sector's
            edge; None: nothing unsafe survives.
        """
        for name, (safe, unsafe) in self.files.items():
            content = bytearray(safe)
            if chance is not None:
                survivors = [_torn(c, chance) for c in unsafe if chance.random() < 0.5]
                chance.shuffle(survivors)
                _apply(content, survivors)
            (folder / name).write_bytes(content)


def _torn(change: _Change, chance: random.Random) -> _Change:
    if change.data is None or chance.random() < 0.7:
        return change
    return _Change(change.at, change.data[: SECTOR * chance.randint(0, len(change.data) // SECTOR)])


class _Shim:
    """SQLite's default file system with three methods replaced; made once, kept for ever."""

    def __init__(self) -> None:
        library = ctypes.CDLL(_sqlite3.__file__)  # the SQLite that Python's own module uses
        library.sqlite3_vfs_find.restype = ctypes.POINTER(_System)
        library.sqlite3_vfs_find.argtypes = [ctypes.c_char_p]
        library.sqlite3_vfs_register.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self._library = library
        self._plain = library.sqlite3_vfs_find(None)
        self._system = _System()
        ctypes.memmove(ctypes.byref(self._system), self._plain, ctypes.sizeof(_System))
        self._open = self._plain.contents.open
        self._system.name = b"forgetful"
        self._delete = self._plain.contents.delete
        self._system.open = self._opened = _OPEN(self._on_open)
        self._system.delete = self._deleted = _DELETE(self._on_delete)
        self._names: dict[int, str] = {}
        self._methods: dict[int, tuple[_Methods, Any]] = {}
        self.disk: Disk | None = None

    def use(self, disk: Disk) -> None:
        """Let every file that is opened from now on be kept by a disk, if it is its own."""
        self.disk = disk
        self._library.sqlite3_vfs_register(ctypes.addressof(self._system), 1)

    def leave(self) -> None:
        """Let files be opened as ever."""
        self._library.sqlite3_vfs_register(ctypes.cast(self._plain, ctypes.c_void_p), 1)
        self._library.sqlite3_vfs_unregister(ctypes.c_void_p(ctypes.addressof(self._system)))
        self.disk = None

    def _on_open(self, system: int, name: int, file: int, flags: int, found: Any) -> int:  # noqa: ANN401
        code: int = self._open(system, name, file, flags, found)
        disk = self.disk
        shown = ctypes.string_at(name).decode() if name else ""  # temporary files have none
        if code == 0 and disk is not None and disk.holds(shown):
            disk.opened(shown)
            self._names[file] = shown
            opened = ctypes.cast(file, ctypes.POINTER(_File)).contents
            opened.methods = ctypes.pointer(self._replaced(opened.methods))
        return code

    def _on_delete(self, system: int, name: int, sync: int) -> int:
        code: int = self._delete(system, name, sync)
        if code == 0 and self.disk is not None:
            self.disk.deleted(ctypes.string_at(name).decode())
        return code

    def _replaced(self, plain: Any) -> _Methods:  # noqa: ANN401
        """Give a copy of a file's methods with three replaced."""
        address = ctypes.addressof(plain.contents)
        if address not in self._methods:
            copied = _Methods()
            ctypes.memmove(ctypes.byref(copied), plain, ctypes.sizeof(_Methods))
            write, truncate, sync = copied.write, copied.truncate, copied.sync
            write = _WRITE(ctypes.cast(write, ctypes.c_void_p).value)
            truncate = _TRUNCATE(ctypes.cast(truncate, ctypes.c_void_p).value)
            sync = _SYNC(ctypes.cast(sync, ctypes.c_void_p).value)

            def on_write(file: int, data: int, size: int, at: int) -> int:
                code: int = write(file, data, size, at)
                if code == 0 and self.disk is not None:
                    self.disk.change(self._names[file], at, ctypes.string_at(data, size))
                return code

            def on_truncate(file: int, size: int) -> int:
                code: int = truncate(file, size)
                if code == 0 and self.disk is not None:
                    self.disk.change(self._names[file], size, None)
                return code

            def on_sync(file: int, flags: int) -> int:
                code: int = sync(file, flags)
                if code == 0 and self.disk is not None:
                    self.disk.sync(self._names[file])
                return code

            kept = (_WRITE(on_write), _TRUNCATE(on_truncate), _SYNC(on_sync))
            copied.write, copied.truncate, copied.sync = kept
            self._methods[address] = (copied, kept)
        return self._methods[address][0]


_shims: list[_Shim] = []


@contextmanager
def forgetful(folder: Path) -> Iterator[Disk]:
    """Let SQLite files of a folder live on a disk that forgets; close them before leaving."""
    if not _shims:
        _shims.append(_Shim())
    disk = Disk(folder)
    _shims[0].use(disk)
    try:
        yield disk
    finally:
        _shims[0].leave()
