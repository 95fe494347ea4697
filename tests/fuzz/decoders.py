"""What is read beside messages: stored posteriors and specification files.

Each decoder takes bytes and gives something, or raises the one declared error. To fuzz
another, give it a class with seeds and an entry in ``DECODERS``.
"""

import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import yaml

from bandit import encoding, spec_file
from bandit.errors import BanditError, CorruptionError, InvalidInputError
from bandit.experiment import Experiment
from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data
from tests.fuzz.target import EXAMPLES
from tests.server.harness import SPEC

_SECRET = bytes(32)
_DIGEST = 32
CLICKS = {"window": 60, "rewards": [{"name": "click"}], "aggregation": "max"}
_POLICIES = (
    {"posterior": "logistic"},
    {"half_life": 3_600},
    {"fourier": {"features": 4}},
)


class Decoder(NamedTuple):
    """Something that reads bytes.

    Attributes
    ----------
    seeds
        Bytes that it reads without an error.
    read
        Reads, or raises.
    error
        The one error that may come of it.
    """

    seeds: list[bytes]
    read: Callable[[bytes], object]
    error: type[BanditError]


def _specs() -> list[ExperimentSpec]:
    return [spec_file.parse(path.read_text(), "toml") for path in EXAMPLES]


def _posterior(spec: ExperimentSpec) -> Decoder:
    experiment = Experiment(spec, secret=_SECRET)
    seed = encoding.to_bytes(experiment.prior())

    def read(data: bytes) -> object:
        posterior = experiment.prior()
        encoding.load(posterior, data)
        with np.errstate(all="ignore"):  # numbers that can not be are refused when they show
            return experiment.publish(posterior, version=1)

    return Decoder([seed], read, CorruptionError)


def sealed(data: bytes) -> bytes:
    """Give changed posterior bytes the checksum that fits them, so that more of them is read."""
    body = data[:-_DIGEST]
    return body + hashlib.blake2b(body, digest_size=_DIGEST).digest()


def with_header(data: bytes, header: object) -> bytes:
    """Give posterior bytes another header, and a length and checksum that fit."""
    length = int.from_bytes(data[6:10], "little")
    text = json.dumps(header).encode()
    arrays = data[10 + length : -_DIGEST]
    return sealed(data[:6] + len(text).to_bytes(4, "little") + text + arrays + bytes(_DIGEST))


def header_of(data: bytes) -> dict[str, object]:
    """Read the header of posterior bytes."""
    length = int.from_bytes(data[6:10], "little")
    found: dict[str, object] = json.loads(data[10 : 10 + length])
    return found


def _file(form: str) -> Decoder:
    written = {
        "toml": [path.read_bytes() for path in EXAMPLES],
        "json": [spec_file.to_json(spec).encode() for spec in _specs()],
        "yaml": [yaml.safe_dump(spec_file.to_data(spec)).encode() for spec in _specs()],
    }

    def read(data: bytes) -> object:
        return spec_file.parse(data.decode(errors="replace"), form)

    return Decoder(written[form], read, InvalidInputError)


def decoders() -> dict[str, Decoder]:
    """Give all decoders by name."""
    specs = [
        from_data({**SPEC, "outcome": CLICKS, "policy": policy, "name": f"policy {i}"})
        for i, policy in enumerate(_POLICIES)
    ]
    posteriors = {f"posterior of {s.name}": _posterior(s) for s in [*_specs(), *specs]}
    return {**posteriors, **{f"{form} file": _file(form) for form in ("toml", "yaml", "json")}}
