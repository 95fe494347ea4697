"""One contract, kept by every policy on every form of belief.

Each check is a function that fails on a policy that breaks it; broken policies at the end
show that it does. Stochastic checks fix their seeds and fail one time in a million for
another seed if the policy is right (``ALPHA``).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bandit import rng
from bandit.choosing import Policy
from bandit.experiment import Experiment
from bandit.kernels.compiling import Floats, Ints
from bandit.snapshot import Asked, Belief, Choices
from bandit.spec_file import from_data

ALPHA = 1e-6
SECRET = b"sixteen bytes or more"
ROWS = 48
DECISIONS = 5_000
FORMS: dict[str, dict[str, object]] = {
    "disjoint": {"terms": [{"of": "context:variant:channel"}]},
    "factored": {},
    "beta": {"posterior": "beta_bernoulli"},
}
POLICIES: dict[str, dict[str, object]] = {
    "thompson sampling": {},
    "thompson sampling, floor": {"floor": 0.05},
    "thompson sampling, greedy": {"exploration": 0.0},
    "top-two": {"kind": "top_two"},
    "top-two, floor": {"kind": "top_two", "top_two_share": 0.3, "floor": 0.05},
    "linucb": {"kind": "linucb", "confidence": 2.0},
    "linucb, floor": {"kind": "linucb", "floor": 0.05},
    "epsilon-greedy": {"kind": "epsilon_greedy", "epsilon": 0.2},
    "epsilon-greedy, floor": {"kind": "epsilon_greedy", "epsilon": 0.0, "floor": 0.05},
    "softmax": {"kind": "softmax", "temperature": 0.2},
    "softmax, floor": {"kind": "softmax", "temperature": 0.01, "floor": 0.05},
    "uniform": {"kind": "uniform"},
    "fixed": {"kind": "fixed", "action": {"variant": "b", "channel": "y"}},
}
every_policy = pytest.mark.parametrize("name", POLICIES)
every_form = pytest.mark.parametrize("form", FORMS)
each_mode = pytest.mark.parametrize("propensities", [True, False], ids=["decide", "draw"])
MASKS = np.array(
    [
        [True, True, True, True, True, True],
        [False, True, True, True, False, True],
        [True, True, True, False, False, False],
        [False, False, True, False, False, False],
    ]
)
ALONE = 3
"""The mask that leaves one action."""


def experiment(policy: dict[str, object]) -> Experiment:
    spec = from_data(
        {
            "name": "e",
            "actions": {"variants": ["a", "b", "c"], "channels": ["x", "y"]},
            "context": [{"name": "age", "kind": "number", "bounds": [-2, 2]}],
            "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
            "policy": policy,
        }
    )
    return Experiment(spec, secret=SECRET)


@cache
def learned(form: str, exploration: float) -> Belief:
    """Publish a belief that has learned a little."""
    of, random = experiment({**FORMS[form], "exploration": exploration}), np.random.default_rng(7)
    posterior, ages = of.prior(), random.uniform(-2, 2, (60, 1))
    of.learn(posterior, ages, random.integers(0, 6, 60), random.uniform(0, 1, 60), seq=60)
    return of.publish(posterior, version=1).belief


@cache
def prepared(name: str, form: str) -> tuple[Policy, Belief]:
    whole = {**FORMS[form], **POLICIES[name]}
    exploration = POLICIES[name].get("exploration", 1.0)
    assert isinstance(exploration, float)
    return experiment(whole).spec.chooser, learned(form, exploration)


@cache
def questions() -> Asked:
    """Ask for different contexts with every mask."""
    random = np.random.default_rng(8)
    ids = [rng.decision_id(SECRET, "e", str(i), 0) for i in range(ROWS)]
    streams = rng.words(b"".join(rng.decision_stream(SECRET, "e", one) for one in ids))
    x = experiment({}).spec.encoder.encode(random.uniform(-2, 2, (ROWS, 1)))
    return Asked(x, random.integers(0, len(MASKS), ROWS), MASKS, streams.reshape(-1, 4))


def part(asked: Asked, rows: slice | Ints) -> Asked:
    return Asked(asked.x[rows], asked.which[rows], asked.masks, asked.streams[rows])


def vector(choices: Choices) -> Floats:
    assert choices.propensities is not None
    return choices.propensities


def floor_of(policy: Policy) -> float:
    floor = getattr(policy, "floor", 0.0)
    assert isinstance(floor, float)
    return floor


# --- the contract -----------------------------------------------------------------------


def check_distribution(policy: Policy, belief: Belief) -> None:
    """Want a vector over the eligible that sums to 1, is at least the floor, holds the action."""
    asked = questions()
    actions, p = policy.choose(belief, asked, propensities=True)
    assert p is not None
    eligible = MASKS[asked.which]
    assert p.shape == eligible.shape
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-9)
    assert (p[eligible] >= floor_of(policy)).all()
    assert (p[~eligible] == 0.0).all()
    assert (p[np.arange(ROWS), actions] > 0.0).all()


def check_eligible(policy: Policy, belief: Belief) -> None:
    """Want an eligible action, with propensities and without."""
    asked = questions()
    for propensities in (True, False):
        actions = policy.choose(belief, asked, propensities=propensities).actions
        assert actions.shape == (ROWS,)
        assert MASKS[asked.which, actions].all()


def check_certain(policy: Policy, belief: Belief) -> None:
    """Want all the probability on the only eligible action."""
    asked = questions()
    alone = asked._replace(which=np.full(ROWS, ALONE))
    for propensities in (True, False):
        actions, p = policy.choose(belief, alone, propensities=propensities)
        assert (actions == 2).all()
        if p is not None:
            np.testing.assert_allclose(p, np.tile(np.eye(6)[2], (ROWS, 1)), atol=1e-15)


def check_grouping(policy: Policy, belief: Belief, order: Ints, cuts: list[int]) -> None:
    """Want the same bits alone, in any batch and in any order."""
    asked = questions()
    for propensities in (True, False):
        whole = policy.choose(belief, asked, propensities=propensities)
        for start, end in pairwise([0, *sorted(cuts), ROWS]):
            rows = order[start:end]
            some = policy.choose(belief, part(asked, rows), propensities=propensities)
            np.testing.assert_array_equal(some.actions, whole.actions[rows])
            if some.propensities is not None:
                np.testing.assert_array_equal(some.propensities, vector(whole)[rows])


def check_purity(policy: Policy, belief: Belief) -> None:
    """Want the same bits for the same question, and neither question nor belief changed."""
    asked, before = questions(), contents(belief)
    copies = [array.copy() for array in asked]
    for propensities in (True, False):
        first = policy.choose(belief, asked, propensities=propensities)
        again = policy.choose(belief, asked, propensities=propensities)
        np.testing.assert_array_equal(first.actions, again.actions)
        if first.propensities is not None:
            np.testing.assert_array_equal(first.propensities, vector(again))
    for array, copy in zip(asked, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    for name, array in contents(belief).items():
        np.testing.assert_array_equal(array, before[name])


def contents(belief: Belief) -> dict[str, Floats]:
    assert dataclasses.is_dataclass(belief)
    parts = {f.name: getattr(belief, f.name) for f in dataclasses.fields(belief)}
    return {name: a.copy() for name, a in parts.items() if isinstance(a, np.ndarray)}


def check_law(policy: Policy, belief: Belief) -> None:
    """Compare shares of many decisions with what was logged, in both modes."""
    random, asked = np.random.default_rng(9), questions()
    words = random.integers(0, 2**32, (DECISIONS, 4), dtype=np.uint32)
    for row, mask in ((0, 0), (1, 1)):
        many = Asked(
            np.repeat(asked.x[row : row + 1], DECISIONS, axis=0),
            np.full(DECISIONS, mask),
            MASKS,
            words,
        )
        p = vector(policy.choose(belief, part(many, slice(0, 1)), propensities=True))[0]
        for propensities in (True, False):
            actions = policy.choose(belief, many, propensities=propensities).actions
            counts = np.bincount(actions, minlength=6)
            assert follows(counts, p)


def follows(counts: Ints, p: Floats) -> bool:
    """Whether counts agree with probabilities, by a chi-square at ``ALPHA``."""
    expected = p * counts.sum()
    if counts[expected == 0.0].any():
        return False
    rare = expected < 10.0
    if rare.any():
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0.0], expected[expected > 0.0]
    expected = expected * counts.sum() / expected.sum()
    return len(counts) == 1 or bool(stats.chisquare(counts, expected).pvalue > ALPHA)


CHECKS: list[Callable[[Policy, Belief], None]] = [
    check_distribution,
    check_eligible,
    check_certain,
    check_purity,
    check_law,
]


@every_policy
@every_form
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_policy_keeps_the_contract(
    name: str, form: str, check: Callable[[Policy, Belief], None]
):
    check(*prepared(name, form))


@every_policy
@every_form
@settings(max_examples=8)
@given(cuts=st.lists(st.integers(0, ROWS), max_size=6), order=st.permutations(range(ROWS)))
def test_any_grouping_gives_the_same_bits(name: str, form: str, cuts: list[int], order: list[int]):
    check_grouping(*prepared(name, form), np.array(order), cuts)


@every_policy
@every_form
def test_one_alone_is_the_same_as_in_a_batch(name: str, form: str):
    check_grouping(*prepared(name, form), np.arange(ROWS), list(range(1, ROWS)))


@pytest.mark.parametrize("name", [n for n in POLICIES if n not in ("uniform", "fixed")])
def test_propensities_can_be_switched_off(name: str):
    policy, belief = prepared(name, "factored")
    assert policy.choose(belief, questions(), propensities=False).propensities is None


# --- broken policies, each caught -------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """Thompson sampling with a fault."""

    inner: Policy
    floor: float = 0.05

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        return self.spoil(*self.inner.choose(belief, asked, propensities=propensities), asked)

    def spoil(self, actions: Ints, p: Floats | None, asked: Asked) -> Choices:
        raise NotImplementedError


class DoesNotSumToOne(Broken):
    def spoil(self, actions: Ints, p: Floats | None, asked: Asked) -> Choices:  # noqa: ARG002
        return Choices(actions, None if p is None else 1.00001 * p)


class GivesTheExcludedSomething(Broken):
    def spoil(self, actions: Ints, p: Floats | None, asked: Asked) -> Choices:  # noqa: ARG002
        return Choices(actions, None if p is None else 0.99 * p + 0.01 / 6)


class ClipsAtTheFloor(Broken):
    """Clip at the floor, then scale: what was clipped falls below the floor."""

    def spoil(self, actions: Ints, p: Floats | None, asked: Asked) -> Choices:
        if p is None:
            return Choices(actions, None)
        eligible = MASKS[asked.which]
        n = eligible.sum(axis=1, keepdims=True)
        raw = np.where(eligible, (p - self.floor) / (1.0 - n * self.floor), 0.0)
        clipped = np.where(eligible, np.maximum(raw, self.floor), 0.0)
        return Choices(actions, clipped / clipped.sum(axis=1, keepdims=True))


class TakesAnExcludedAction(Broken):
    def spoil(self, actions: Ints, p: Floats | None, asked: Asked) -> Choices:  # noqa: ARG002
        return Choices((actions + 1) % 6, p)


class DoubtsTheOnlyAction(Broken):
    def spoil(self, actions: Ints, p: Floats | None, asked: Asked) -> Choices:  # noqa: ARG002
        return Choices(actions, None if p is None else np.minimum(p, 0.999))


class LearnsFromQuestions(Broken):
    """Hidden state: every call moves the next one's draws."""

    calls = np.zeros(1, dtype=np.uint32)

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        self.calls[0] += 1
        moved = asked._replace(streams=asked.streams + self.calls[0])
        return self.inner.choose(belief, moved, propensities=propensities)


class MovesTheBelief(Broken):
    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        choices = self.inner.choose(belief, asked, propensities=propensities)
        assert hasattr(belief, "bank")
        belief.bank[0] += 1e-12
        return choices


class SharesOneDraw(Broken):
    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        shared = np.repeat(asked.streams[:1], len(asked.streams), axis=0)
        return self.inner.choose(belief, asked._replace(streams=shared), propensities=propensities)


class LooksAtTheWholeBatch(Broken):
    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        centred = asked.x - 0.05 * asked.x.mean(axis=0)
        return self.inner.choose(belief, asked._replace(x=centred), propensities=propensities)


class PlaysTheMostProbable(Broken):
    def spoil(self, actions: Ints, p: Floats | None, asked: Asked) -> Choices:  # noqa: ARG002
        return Choices(actions if p is None else p.argmax(axis=1), p)


class IsBolderWithoutPropensities(Broken):
    """Without propensities it forgets the floor, which no vector shows."""

    def choose(self, belief: Belief, asked: Asked, *, propensities: bool) -> Choices:
        if propensities:
            return self.inner.choose(belief, asked, propensities=True)
        return Choices(belief.decide(asked, 0.0).actions, None)


BROKEN: dict[type[Broken], Callable[[Policy, Belief], None]] = {
    DoesNotSumToOne: check_distribution,
    GivesTheExcludedSomething: check_distribution,
    ClipsAtTheFloor: check_distribution,
    TakesAnExcludedAction: check_eligible,
    DoubtsTheOnlyAction: check_certain,
    LearnsFromQuestions: check_purity,
    MovesTheBelief: check_purity,
    SharesOneDraw: lambda p, b: check_grouping(p, b, np.arange(ROWS), [1]),
    LooksAtTheWholeBatch: lambda p, b: check_grouping(p, b, np.arange(ROWS), [20]),
    PlaysTheMostProbable: check_law,
    IsBolderWithoutPropensities: check_law,
}


@pytest.mark.parametrize("broken", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_policy_is_caught(broken: type[Broken]):
    policy, belief = prepared("thompson sampling, floor", "factored")
    belief = dataclasses.replace(belief, bank=belief.bank.copy())  # type: ignore[attr-defined,type-var]
    check = BROKEN[broken]
    check(policy, belief)
    with pytest.raises(AssertionError):
        check(broken(policy), belief)
