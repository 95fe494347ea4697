"""What a rollout is asked: an experiment, a world, policies, and how they learn."""

import hashlib
import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from bandit.errors import BanditError, InvalidInputError
from bandit.experiment import Experiment
from bandit.groups import Groups
from bandit.policy import KINDS, ActionName, PolicySpec
from bandit.rng import keyed
from bandit.spec import ExperimentSpec, Publishing
from sims.worlds import Course, World

TENANT = "default"
"""Whose experiments are on a server without tokens."""

UNIFORM, BASELINE = "uniform", "baseline"
"""Labels of the two references, which every rollout has."""

MAX_CUSTOMERS = 100_000_000
MAX_REPLICATIONS = 100_000
MAX_POLICIES = 32
MAX_WORK = 1e12
MAX_CELLS = 100_000_000
_EVERYBODY = Groups(random=0.0)
_SHORT = {"thompson": "thompson_sampling", "epsilon-greedy": "epsilon_greedy", "ucb": "linucb"}
_OF_ONE_KIND = ("top_two_share", "confidence", "epsilon", "temperature", "action")


@dataclass(frozen=True, slots=True, kw_only=True)
class AtOnce:
    """Learn every outcome the moment it is due, as a program with the engine inside may.

    Everybody is decided for by the policy itself: traffic groups belong to a served experiment.
    A floor that is not declared is none, since nothing is drawn from a bank.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Learn as the server does: outcomes are folded when due, and published now and then.

    Parameters
    ----------
    outcomes
        Publish after this many new outcomes ...
    seconds
        ... or this long, in the world's time, after the first of them.

    Raises
    ------
    InvalidInputError
        If a value is out of the range that a server takes.
    """

    outcomes: int = 1_000
    seconds: float = 1.0

    def __post_init__(self) -> None:
        Publishing(outcomes=self.outcomes, seconds=self.seconds)

    @classmethod
    def of(cls, spec: ExperimentSpec) -> "Published":
        """Give the cadence that the experiment declares for its server."""
        return cls(outcomes=spec.publishing.outcomes, seconds=spec.publishing.seconds)


Learning = AtOnce | Published


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a rollout depends on; tasks are functions of it.

    Parameters
    ----------
    spec
        The experiment: actions, context, outcome, groups.
    world
        Gives the course of every replication.
    policies
        Label and policy of each that is compared, all in the same experiment.
    customers, replications
        How many customers each policy decides for, and how often from scratch.
    seed
        Names all randomness.
    learning
        At once, or with a server's cadence.
    checkpoints
        Customers after which figures are kept, rising, the last one all; empty: fifty alike.

    Raises
    ------
    InvalidInputError
        If a number is out of range, a label is bad or repeated, a policy does not fit the
        experiment, or it is more work than anybody would wait for.
    """

    spec: ExperimentSpec
    world: World
    policies: tuple[tuple[str, PolicySpec], ...]
    customers: int
    replications: int = 20
    seed: int = 1
    learning: Learning = AtOnce()
    checkpoints: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_whole("customers", self.customers, 1, MAX_CUSTOMERS)
        _check_whole("replications", self.replications, 1, MAX_REPLICATIONS)
        _check_whole("seed", self.seed, 0, 2**63 - 1)
        self._check_policies()
        if not self.checkpoints:
            object.__setattr__(self, "checkpoints", _evenly(self.customers))
        self._check_checkpoints()
        work = self.customers * self.replications * len(self.policies)
        if work > MAX_WORK:
            raise InvalidInputError(
                f"times replications and policies is {work:.1e} decisions, at most "
                f"{MAX_WORK:.0e} are taken",
                field="customers",
            )
        cells = len(self.policies) * len(self.checkpoints) * self.spec.actions.size
        if max(cells, len(self.policies) * len(self.checkpoints) * self.replications) > MAX_CELLS:
            raise InvalidInputError(
                "times policies and actions (or replications) keeps more than "
                f"{MAX_CELLS:,} figures; give fewer",
                field="checkpoints",
            )
        self.course(0)  # a world that does not fit says so now

    def _check_policies(self) -> None:
        if not 1 <= len(self.policies) <= MAX_POLICIES:
            raise InvalidInputError(
                f"needs 1 to {MAX_POLICIES}, got {len(self.policies)}", field="policies"
            )
        for label, policy in self.policies:
            if not (0 < len(label) <= 64 and label.isprintable()):
                raise InvalidInputError(
                    "needs a label of 1 to 64 printable characters", field="policies"
                )
            try:
                replace(self.spec, policy=policy)
            except BanditError as error:
                raise error.under(f"policies[{label!r}]") from None
        if len(set(self.labels)) < len(self.policies):
            raise InvalidInputError("repeat a label", field="policies")

    def _check_checkpoints(self) -> None:
        points = self.checkpoints
        rises = all(a < b for a, b in pairwise(points))
        if not (rises and points[0] >= 1 and points[-1] == self.customers):
            raise InvalidInputError(
                f"must rise from at least 1 to all {self.customers} customers",
                field="checkpoints",
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in order."""
        return tuple(label for label, _ in self.policies)

    @cached_property
    def experiments(self) -> tuple[ExperimentSpec, ...]:
        """The experiment with each policy in turn."""
        groups = self.spec.groups if isinstance(self.learning, Published) else _EVERYBODY
        return tuple(
            replace(self.spec, policy=policy, groups=groups) for _, policy in self.policies
        )

    def secret(self, replication: int) -> bytes:
        """Give the secret of the server that one replication would run on, for every policy."""
        name = f"rollout\0{self.seed}\0{replication}"
        return hashlib.sha256(name.encode()).hexdigest().encode()

    def experiment(self, policy: int, replication: int) -> Experiment:
        """Give the experiment that a policy runs in one replication."""
        secret = keyed(self.secret(replication), "tenant", "", TENANT.encode())
        return Experiment(self.experiments[policy], secret=secret)

    def course(self, replication: int) -> Course:
        """Give the customers of one replication."""
        return Course(self.world, self.spec, seed=self.seed, replication=replication)

    def place(self, label: str) -> int:
        """Give a label's place.

        Raises
        ------
        InvalidInputError
            If no policy has it.
        """
        if label not in self.labels:
            raise InvalidInputError(
                f"no policy {label!r}; there are {', '.join(self.labels)}", field="label"
            )
        return self.labels.index(label)


def with_references(
    spec: ExperimentSpec, policies: dict[str, PolicySpec]
) -> tuple[tuple[str, PolicySpec], ...]:
    """Add what all are measured against: ``uniform``, and ``baseline`` where one is declared."""
    found = dict(policies)
    found.setdefault(UNIFORM, named(spec, UNIFORM))
    if spec.baseline is not None:
        found.setdefault(BASELINE, named(spec, "fixed"))
    return tuple(found.items())


def named(spec: ExperimentSpec, kind: str) -> PolicySpec:
    """Give the experiment's own policy with another kind.

    Parameters
    ----------
    kind
        One of ``bandit.policy.KINDS``, or short: ``thompson``, ``ucb``, ``epsilon-greedy``.
        ``fixed`` plays the baseline, ``fixed:variant/channel`` or ``fixed:variant/channel/slot``
        that action.

    Raises
    ------
    InvalidInputError
        If there is no such kind, or no baseline to play.
    """
    name, _, action = kind.partition(":")
    name = _SHORT.get(name, name)
    if name not in KINDS or (action and name != "fixed"):
        raise InvalidInputError(
            f"{kind!r} is none of {', '.join((*KINDS, *_SHORT))}", field="policy"
        )
    if name == spec.policy.kind and not action:
        return spec.policy
    defaults = PolicySpec()
    own = {part: getattr(defaults, part) for part in _OF_ONE_KIND}
    if name == "fixed":
        own["action"] = _action(spec, action)
    return replace(spec.policy, kind=name, **own)


def _action(spec: ExperimentSpec, text: str) -> ActionName:
    if text:
        levels = text.split("/")
        if len(levels) not in (2, 3):
            raise InvalidInputError(
                f"{text!r} is not variant/channel or variant/channel/slot", field="policy"
            )
        return ActionName(variant=levels[0], channel=levels[1], slot=(*levels, "now")[2])
    if spec.baseline is None:
        raise InvalidInputError(
            "the experiment declares no baseline to play; name the action: "
            "fixed:variant/channel/slot",
            field="policy",
        )
    return spec.baseline


def _evenly(customers: int) -> tuple[int, ...]:
    points = np.linspace(0.0, customers, 51)[1:]
    return tuple(sorted({max(math.ceil(point), 1) for point in points.tolist()}))


def _check_whole(field: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidInputError(
            f"must be a whole number in [{low:,}, {high:,}], got {value}", field=field
        )
