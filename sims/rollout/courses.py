"""What a rollout needs of a world: customers in order, and what every action would earn."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from bandit.actions import Exclusion
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.spec import ExperimentSpec


class Arrivals(NamedTuple):
    rows: Floats
    times: Floats
    customers: Ints
    exclusions: Sequence[tuple[Exclusion, ...]]


class Responses(NamedTuple):
    rewards: Floats
    due: Floats
    unsubscribed: Bools


class History(Protocol):
    pass


class Course(Protocol):
    is_memoryless: bool

    def arrivals(self, start: int, stop: int) -> Arrivals: ...

    def expected(self, arrivals: Arrivals, start: int, history: History) -> Floats: ...

    def respond(self, arrivals: Arrivals, start: int, actions: Ints, expected: Floats) -> Responses: ...

    def history(self) -> History: ...


class World(Protocol):
    def course(self, spec: ExperimentSpec, *, seed: int, replication: int) -> Course: ...
