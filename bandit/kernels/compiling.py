"""How kernels are compiled, and where the compiled code is kept.

Numba's disk cache notices an edit in the file of a kernel, but not in the files of the kernels
it calls. The cache of this package therefore lives in a folder named for the contents of all its
files: an edit anywhere compiles everything anew, and never runs stale code. Kernels outside of
this package, which call these, have a folder named for both.

Numba reads, changes and writes the list of what is compiled in steps. Two processes that compile a
kernel for different types at once could give both codes one file, and one would then run the
other's. So these steps are taken one process at a time.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Cells = NDArray[np.int32]
Bools = NDArray[np.bool_]
Words = NDArray[np.uint32]

_HERE = Path(__file__).parent
_CONFIG: Any = numba.config


@lru_cache
def _cache_folder(folder: Path) -> Path:
    """Give where the compiled code of a folder's kernels is kept; NUMBA_CACHE_DIR moves it.

    Named for the contents of these files and of that folder's, whose kernels may call these.
    """
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(_HERE.glob("*.py")) + sorted(folder.glob("*.py")) * (folder != _HERE):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    kept = Path(_CONFIG.CACHE_DIR or folder / "__pycache__")
    try:
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=kept):
            pass
    except OSError:  # a read-only installation: the user's own cache
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        kept = Path(base) / "banditctl"
    return kept / f"kernels-{digest.hexdigest()}"


def _compiled(function: F, *, inlined: bool) -> F:
    elsewhere = _CONFIG.CACHE_DIR
    folder = _cache_folder(Path(function.__code__.co_filename).parent)
    _CONFIG.CACHE_DIR = str(folder)
    try:
        compiled: Any = numba.njit(
            cache=True, nogil=True, error_model="numpy", forceinline=inlined
        )(function)
    finally:
        _CONFIG.CACHE_DIR = elsewhere
    files = compiled._cache._cache_file  # numba has no public name for it
    for step in ("load", "save"):
        setattr(files, step, _one_at_a_time(getattr(files, step), folder))
    return cast("F", compiled)


def _one_at_a_time(step: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Let one process at a time take a step on the files of a folder."""

    def taken(*given: Any) -> Any:  # noqa: ANN401  numba's own
        with ExitStack() as stack:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(folder))
            except (OSError, NotImplementedError):
                pass  # a file system without locks: as safe as numba is
            return step(*given)

    return taken


@lru_cache
def _lock(folder: Path) -> FileLock:
    return FileLock(folder / "lock")


def kernel(function: F) -> F:
    """Compile the house way: lazily, cached on disk, without the GIL, IEEE arithmetic."""
    return _compiled(function, inlined=False)


def inlined_kernel(function: F) -> F:
    """Compile as ``kernel`` does, into its callers: saves 10 ns an array argument a call."""
    return _compiled(function, inlined=True)
