"""Random numbers of a simulation, by name: a purpose, and the number of a customer or visit."""

import hashlib

import numpy as np

from bandit.kernels.compiling import Floats, Ints, Words
from sims.kernels import worlds as kernels


def stream(purpose: str, *numbers: int) -> Words:
    """Name a stream: its purpose, and the seed and replication it belongs to; shape (4,)."""
    name = "\0".join([purpose, *map(str, numbers)]).encode()
    digest = hashlib.blake2b(name, digest_size=16, person=b"bandit.sims").digest()
    return np.frombuffer(digest, dtype="<u4").astype(np.uint32)


def uniforms(named: Words, numbers: Ints, columns: int) -> Floats:
    """Give the uniforms in (0, 1) that belong to some numbers, shape (n, columns)."""
    out = np.empty((len(numbers), columns))
    kernels.fill_uniforms(named, np.ascontiguousarray(numbers, dtype=np.int64), out)
    return out


def normals(named: Words, numbers: Ints, columns: int) -> Floats:
    """Give the standard normals that belong to some numbers, shape (n, columns)."""
    out = uniforms(named, numbers, columns)
    kernels.to_normals(out.reshape(-1))
    return out


def as_normals(values: Floats) -> Floats:
    """Turn uniforms into standard normals, shape (n,)."""
    out = values.copy()
    kernels.to_normals(out)
    return out


def as_exponentials(values: Floats) -> Floats:
    """Turn uniforms into exponentials of mean 1, shape (n,)."""
    out = values.copy()
    kernels.to_exponentials(out)
    return out


def exponentials_of(values: Floats) -> Floats:
    """Give ``exp(values)`` with the same bits everywhere, shape (n,)."""
    out = values.copy()
    kernels.exp_all(out)
    return out
