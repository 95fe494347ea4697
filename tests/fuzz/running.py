"""Fuzzing: blocks of Hypothesis examples, each of which makes several inputs."""

import copy
import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import yaml
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from bandit.errors import BanditError
from tests.fuzz.decoders import Decoder, header_of, sealed, with_header
from tests.fuzz.messages import draw_field, draw_message, parts, spoil
from tests.fuzz.target import DECLARED, REQUESTS, Found, Target

EDITS = st.lists(st.binary(min_size=4, max_size=16), min_size=6, max_size=6)
ODD = st.one_of(
    st.sampled_from([None, True, -1, 0, 1, 2**31, 2**63, 2**64, -(2**70), 0.5, 1e308, "", "x"]),
    st.sampled_from([[], {}, [1, 2], [-1], [2**40], [2**62, 4], [[1]], ["x"], {"x": 1}, [None]]),
)
Tell = Callable[[int], None]


@st.composite
def requests(draw: Any, method: str, target: Target) -> Message:  # noqa: ANN401
    """Make a request: from nothing, or a valid one with a few fields drawn anew."""
    if draw(st.integers(0, 3)) == 3:
        message = REQUESTS[method]()
        draw_message(draw, message, target.words)
        return message
    message = copy.deepcopy(draw(st.sampled_from(target.seeds[method])))
    for _ in range(draw(st.integers(0, 3))):
        inside = parts(message)
        part = inside[draw(st.integers(0, len(inside) - 1))]
        if part.DESCRIPTOR.fields:
            draw_field(
                draw, part, draw(st.sampled_from(list(part.DESCRIPTOR.fields))), target.words
            )
    return message


@st.composite
def changed_data(draw: Any, data: object) -> object:  # noqa: ANN401
    """Replace, remove or add something in nested dicts and lists."""
    made = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        here: Any = made
        while isinstance(here, dict | list) and here:
            keys = sorted(here) if isinstance(here, dict) else list(range(len(here)))
            key = draw(st.sampled_from(keys))
            if isinstance(here[key], dict | list) and here[key] and draw(st.integers(0, 2)):
                here = here[key]
                continue
            if draw(st.integers(0, 3)):
                here[key] = copy.deepcopy(draw(ODD))
            else:
                del here[key]
            break
    return made


def _block(test: Callable[..., None], number: int, examples: int, **given_: Any) -> None:  # noqa: ANN401
    """Run a property on some examples, of a seed of its own."""
    told = settings(
        max_examples=examples,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    seed(number)(told(given(**given_)(test)))()


def fuzz_requests(target: Target, method: str, number: int, examples: int, *, wire: bool) -> None:
    """Give a method's handler messages and bytes; only declared statuses may come."""
    send = target.send if wire else target.handle

    def check(message: Message, edits: list[bytes]) -> None:
        data = message.SerializeToString()
        for one in (data, *(spoil(data, edit) for edit in edits)):
            code = send(method, one)
            assert code in DECLARED, (method, code, one[:500])

    _block(check, number, examples, message=requests(method, target), edits=EDITS)


def fuzz_decoder(found: Found, decoder: Decoder, number: int, examples: int) -> None:
    """Give a decoder bytes; it must read them, or raise its one error."""

    def check(which: int, edits: list[bytes], data: st.DataObject) -> None:
        seed = decoder.seeds[which]
        inputs = [spoil(seed, edit) for edit in edits]
        if seed.startswith(b"BNDP"):
            inputs += [sealed(one) for one in inputs if len(one) > 64]
            inputs.append(with_header(seed, data.draw(changed_data(header_of(seed)))))
        elif seed.startswith(b"{"):
            changed = data.draw(changed_data(json.loads(seed)))
            inputs += [json.dumps(changed).encode(), yaml.safe_dump(changed).encode()]
        for one in inputs:
            _read(found, decoder, one)

    which = st.integers(0, len(decoder.seeds) - 1)
    _block(check, number, examples, which=which, edits=EDITS, data=st.data())


def _read(found: Found, decoder: Decoder, data: bytes) -> None:
    began = time.perf_counter()
    try:
        decoder.read(data)
        found["read"] += 1
    except BanditError as error:
        assert type(error) is decoder.error, (error, data[:500])
        found[type(error).__name__] += 1
    found.note(decoder.error.__name__, time.perf_counter() - began)


def run(
    target: Target, decoders: dict[str, Decoder], inputs: int, *, tell: Tell, examples: int = 10
) -> Counter[str]:
    """Fuzz everything in turn until so many inputs were made; give the statuses seen.

    Every tenth block of requests goes over the socket, all others to the handlers.
    """
    number = 0
    while target.found.total() < inputs:
        for method in REQUESTS:
            number += 1
            wire = number % 10 == 0
            fuzz_requests(target, method, number, examples, wire=wire)
        for decoder in decoders.values():
            number += 1
            fuzz_decoder(target.found, decoder, number, examples)
        tell(target.found.total())
    return target.found
