"""How kernels are compiled, and where the compiled code is kept.

Numba's disk cache notices an edit in the file of a kernel, but not in the files of the kernels
it calls. The cache of this package therefore lives in a folder named for the contents of all its
files: an edit anywhere compiles everything anew, and never runs stale code. Kernels outside of
this package, which call these, have a folder named for both.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
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
    _CONFIG.CACHE_DIR = str(_cache_folder(Path(function.__code__.co_filename).parent))
    try:
        compiled = numba.njit(cache=True, nogil=True, error_model="numpy", forceinline=inlined)(
            function
        )
    finally:
        _CONFIG.CACHE_DIR = elsewhere
    return cast("F", compiled)


def kernel(function: F) -> F:
    """Compile the house way: lazily, cached on disk, without the GIL, IEEE arithmetic."""
    return _compiled(function, inlined=False)


def inlined_kernel(function: F) -> F:
    """Compile as ``kernel`` does, into its callers: saves 10 ns an array argument a call."""
    return _compiled(function, inlined=True)
