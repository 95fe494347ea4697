"""Slates: rankings, draws without replacement, and their probabilities."""

from itertools import combinations, pairwise, permutations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bandit import rng
from bandit.actions import Exclusion
from bandit.decision import Group, Reason
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.kernels import slates as kernels
from bandit.kernels.compiling import Floats, Ints, Words
from bandit.question import Question
from bandit.slates import (
    Slate,
    draw_slate,
    inclusion_probabilities,
    rank,
    slate_probability,
)
from bandit.spec_file import from_data

ALPHA = 1e-6
SECRET = b"sixteen bytes or more"
DRAWS = 1_000_000


def named(i: int) -> Words:
    return np.array([i, 1, 2, 3], dtype=np.uint32)


@st.composite
def distributions(draw: st.DrawFn, most: int = 7) -> Floats:
    weights = st.sampled_from([0.0, 1e-12, 1e-3, 0.3, 1.0]) | st.floats(0, 1)
    p = np.array(draw(st.lists(weights, min_size=1, max_size=most).filter(lambda w: sum(w) > 0)))
    return p / p.sum()


# --- rankings ---------------------------------------------------------------------------


@given(p=distributions(), n=st.integers(1, 9))
def test_a_ranking_is_the_most_probable_in_order(p: Floats, n: int):
    expected = sorted((a for a in range(len(p)) if p[a] > 0), key=lambda a: (-p[a], a))[:n]
    assert rank(p, n).tolist() == expected


# --- one slate --------------------------------------------------------------------------


@settings(max_examples=50)
@given(p=distributions(), n=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_a_slate_holds_possible_actions_once_with_their_probabilities(p: Floats, n: int, seed: int):
    slate = draw_slate(p, n, named(seed))
    actions = slate.actions.tolist()
    assert len(actions) == len(set(actions)) == min(n, np.count_nonzero(p))
    left = 1.0
    for action, probability in zip(actions, slate.probabilities, strict=True):
        assert 0.0 < probability <= 1.0 + 1e-12
        assert probability == pytest.approx(p[action] / left, rel=1e-6, abs=1e-15)
        left = sum(p[a] for a in range(len(p)) if a not in actions[: actions.index(action) + 1])
    assert slate.propensity == np.prod(slate.probabilities) == slate_probability(p, actions)
    again = draw_slate(p, n, named(seed))
    np.testing.assert_array_equal(again.actions, slate.actions)


@settings(max_examples=50)
@given(p=distributions(5), n=st.integers(1, 5))
def test_the_probabilities_of_all_slates_add_up_to_one(p: Floats, n: int):
    places = min(n, np.count_nonzero(p))
    total = sum(slate_probability(p, slate) for slate in permutations(range(len(p)), int(places)))
    assert total == pytest.approx(1.0, abs=1e-9)


def test_a_longer_slate_begins_as_a_shorter_one():
    p = np.array([0.4, 0.3, 0.2, 0.1])
    for i in range(20):
        long, short = draw_slate(p, 4, named(i)), draw_slate(p, 2, named(i))
        np.testing.assert_array_equal(long.actions[:2], short.actions)
        np.testing.assert_array_equal(long.probabilities[:2], short.probabilities)


def test_impossible_slates_have_no_probability():
    p = np.array([0.5, 0.5, 0.0])
    assert slate_probability(p, [0, 0]) == 0.0
    assert slate_probability(p, [2]) == 0.0
    assert slate_probability(p, [0, 1, 2]) == 0.0
    assert slate_probability(p, []) == 1.0


@pytest.mark.parametrize(
    ("p", "n", "field"),
    [
        ([0.5, 0.4], 1, "p"),
        ([1.5, -0.5], 1, "p"),
        ([float("nan"), 1.0], 1, "p"),
        ([[1.0]], 1, "p"),
        ([], 1, "p"),
        ([1.0], 0, "n"),
    ],
)
def test_what_is_no_distribution_or_size_is_refused(p: list[float], n: int, field: str):
    for ask in (
        lambda p: rank(p, n),
        lambda p: draw_slate(p, n, named(1)),
        lambda p: inclusion_probabilities(p, n),
    ):
        with pytest.raises(InvalidInputError) as caught:
            ask(np.array(p))
        assert caught.value.field == field


@pytest.mark.parametrize("actions", [[-1], [2]])
def test_actions_that_do_not_exist_are_refused(actions: list[int]):
    with pytest.raises(InvalidInputError) as caught:
        slate_probability(np.array([0.5, 0.5]), actions)
    assert caught.value.field == "actions"


# --- the law of many --------------------------------------------------------------------


@numba.njit
def many(p: Floats, words: Words, n: int) -> Ints:  # pragma: no cover
    out = np.empty((len(words), n), dtype=np.int64)
    for t in range(len(words)):
        out[t] = kernels.complete(p, kernels.draw_first(p, words[t]), words[t], n)
    return out


def counted(p: Floats, n: int) -> tuple[list[tuple[int, ...]], Ints]:
    words = np.random.default_rng(5).integers(0, 2**32, (DRAWS, 4), dtype=np.uint32)
    words.flags.writeable = False  # as the engine's own, for which the kernels are compiled
    slates = list(permutations(range(len(p)), n))
    codes = len(p) ** np.arange(n)
    found = np.bincount(many(p, words, n) @ codes, minlength=len(p) ** n)
    return slates, found[[int(np.dot(slate, codes)) for slate in slates]]


def unordered(p: Floats, slate: tuple[int, ...]) -> float:
    """Give a wrong law: places drawn with replacement until all differ."""
    return float(np.prod(p[list(slate)]))


def test_a_million_slates_follow_their_probabilities():
    """A chi-square of 60 slates, false alarms 1e-6; the wrong law is noticed."""
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
    slates, counts = counted(p, 3)
    assert counts.sum() == DRAWS
    expected = np.array([slate_probability(p, slate) for slate in slates])
    assert stats.chisquare(counts, DRAWS * expected / expected.sum()).pvalue > ALPHA
    wrong = np.array([unordered(p, slate) for slate in slates])
    assert stats.chisquare(counts, DRAWS * wrong / wrong.sum()).pvalue < ALPHA
    inside = np.array(
        [sum(c for s, c in zip(slates, counts, strict=True) if a in s) for a in range(5)]
    )
    exact = inclusion_probabilities(p, 3)
    error = (inside - DRAWS * exact) / np.sqrt(DRAWS * exact * (1 - exact))
    assert np.abs(error).max() < 5.5  # 1e-6 / 5 each is 5.2


# --- inclusion --------------------------------------------------------------------------


def by_subsets(p: Floats, n: int) -> Floats:
    """Add up the probabilities of all sets of n: the last of a set may be any of its actions."""
    k = len(p)
    probability = {frozenset[int](): 1.0}
    for size in range(1, n + 1):
        probability = {
            frozenset(some): sum(
                probability[frozenset(some) - {a}]
                * p[a]
                / sum(p[b] for b in range(k) if b == a or b not in some)
                for a in some
            )
            for some in combinations(range(k), size)
        }
    return np.array([sum(q for s, q in probability.items() if a in s) for a in range(k)])


@settings(max_examples=40)
@given(
    weights=st.lists(st.floats(-9, 0), min_size=1, max_size=7).map(lambda w: 10.0 ** np.array(w)),
    n=st.integers(1, 7),
)
def test_inclusion_is_the_sum_over_subsets(weights: Floats, n: int):
    p = weights / weights.sum()
    places = min(n, len(p))
    inside = inclusion_probabilities(p, n)
    np.testing.assert_allclose(inside, by_subsets(p, places), atol=1e-11)
    assert inside.sum() == pytest.approx(places, abs=1e-10)


def test_inclusion_leaves_out_what_is_impossible():
    inside = inclusion_probabilities(np.array([0.0, 0.75, 0.25, 0.0]), 1)
    np.testing.assert_allclose(inside, [0.0, 0.75, 0.25, 0.0], atol=1e-12)
    np.testing.assert_array_equal(
        inclusion_probabilities(np.array([0.0, 0.75, 0.25, 0.0]), 3), [0, 1, 1, 0]
    )


@pytest.mark.parametrize("n", [1, 5, 40])
def test_inclusion_of_many_actions_adds_up_to_the_places(n: int):
    """Two groups of equal actions, so that the exact values are known by symmetry: their sum."""
    p = np.concatenate([np.full(50, 0.9 / 50), np.full(450, 0.1 / 450)])
    inside = inclusion_probabilities(p, n)
    assert inside.sum() == pytest.approx(n, abs=1e-9)
    assert np.ptp(inside[:50]) < 1e-12 > np.ptp(inside[50:])
    if n == 1:
        np.testing.assert_allclose(inside, p, atol=1e-12)


# --- the front door ---------------------------------------------------------------------

POLICIES: dict[str, dict[str, object]] = {
    "disjoint": {"terms": [{"of": "context:variant:channel"}]},
    "joint": {},
    "beta": {"posterior": "beta_bernoulli"},
    "softmax": {"kind": "softmax"},
    "linucb": {"kind": "linucb"},
}
NO_A, NO_B = Exclusion(variant="a", reason="no a"), Exclusion(variant="b", reason="no b")


def experiment(policy: dict[str, object]) -> Experiment:
    spec = from_data(
        {
            "name": "welcome",
            "actions": {"variants": ["a", "b"], "channels": ["x", "y"]},
            "context": [{"name": "vip", "kind": "flag"}],
            "outcome": {"window": 60, "aggregation": "max", "rewards": [{"name": "r"}]},
            "policy": policy,
            "groups": {"random": 0.25, "baseline": 0.25, "no_contact": 0.25},
            "baseline": {"variant": "a", "channel": "x"},
            "fallback": {"variant": "b", "channel": "x"},
        }
    )
    return Experiment(spec, secret=SECRET)


def questions(n: int) -> list[Question]:
    rules = [(), (NO_A,), (), (NO_A, NO_B)]
    return [
        Question(
            rng.decision_id(SECRET, "welcome", f"request {i}", 0),
            str(i).encode(),
            [float(i % 3 == 0)],
            rules[i % 4],
        )
        for i in range(n)
    ]


def same(one: Slate, two: Slate) -> bool:
    return (
        one.propensity == two.propensity
        and np.array_equal(one.actions, two.actions)
        and np.array_equal(one.probabilities, two.probabilities)
    )


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=10)
@given(cuts=st.lists(st.integers(0, 40), max_size=4), order=st.permutations(range(40)))
def test_a_batch_of_slates_answers_as_each_alone(name: str, cuts: list[int], order: list[int]):
    of = experiment(POLICIES[name])
    snapshot, asked = of.publish(of.prior(), version=0), questions(40)
    whole = of.decide_slates(snapshot, asked, size=3)
    for start, end in pairwise(sorted({0, *cuts, 40})):
        some = of.decide_slates(snapshot, [asked[i] for i in order[start:end]], size=3)
        for i, (decision, slate) in zip(order[start:end], some, strict=True):
            assert decision.decision_id == whole[i][0].decision_id
            assert same(slate, whole[i][1])


@pytest.mark.parametrize("name", POLICIES)
def test_a_slate_begins_with_the_decision_and_respects_rules_and_groups(name: str):
    of = experiment(POLICIES[name])
    snapshot, asked = of.publish(of.prior(), version=0), questions(200)
    plain = of.decide_batch(snapshot, asked)
    seen = set()
    for question, alone, (decision, slate) in zip(
        asked, plain, of.decide_slates(snapshot, asked, size=3), strict=True
    ):
        assert (decision.action, decision.reason) == (alone.action, alone.reason)
        assert decision.propensity == alone.propensity
        eligible = of.spec.actions.eligible(question.exclusions)
        if decision.action is None:
            assert len(slate.actions) == 0
            assert slate.propensity == 1.0
        else:
            assert slate.actions[0] == decision.action
            assert slate.probabilities[0] == decision.propensity
            assert eligible[slate.actions].all() or decision.reason.is_fallback
        if decision.reason is Reason.RANDOM_GROUP:
            left = np.count_nonzero(eligible) - np.arange(len(slate.actions))
            assert len(left) == min(3, np.count_nonzero(eligible))
            np.testing.assert_allclose(slate.probabilities, 1.0 / left)
        elif decision.reason is Reason.POLICY:
            assert decision.propensities is not None
            possible = np.count_nonzero(decision.propensities)
            assert len(slate.actions) == min(3, possible)
        else:
            assert len(slate.actions) <= 1
            assert slate.propensity == 1.0
        seen.add(decision.group)
    assert seen == set(Group)


def test_where_nobody_is_decided_for_a_slate_is_the_fallback():
    of = experiment({})
    snapshot = of.publish(of.prior(), version=0)
    answers = of.decide_slates(snapshot, questions(1), size=4, refused=Reason.PAUSED)
    ((decision, slate),) = answers
    assert (decision.action, decision.reason) == (2, Reason.PAUSED)
    assert (slate.actions.tolist(), slate.propensity) == ([2], 1.0)


def test_a_named_context_gets_the_slate_of_its_row():
    of = experiment({})
    snapshot, (asked,) = of.publish(of.prior(), version=0), questions(1)
    _, slate = of.decide_slate(
        snapshot,
        {"vip": True},
        size=2,
        decision_id=asked.decision_id,
        customer=asked.customer,
    )
    assert same(slate, of.decide_slates(snapshot, [asked], size=2)[0][1])


@pytest.mark.parametrize("size", [0, 5, 1.5])
def test_a_slate_has_a_place_for_each_action_at_most(size: float):
    of = experiment({})
    with pytest.raises(InvalidInputError) as caught:
        of.decide_slates(of.publish(of.prior(), version=0), questions(1), size=size)
    assert caught.value.field == "size"
