"""Revisions: indices never move, nothing learned is lost, and nothing is reinterpreted."""

from collections.abc import Callable
from dataclasses import replace
from typing import cast
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import encoding, revision
from bandit.actions import ActionSpace, Exclusion, Level
from bandit.context import ContextField
from bandit.errors import BanditError, InvalidInputError
from bandit.experiment import Experiment
from bandit.features import Term
from bandit.kernels.compiling import Floats
from bandit.outcome import OutcomeRule, Reward
from bandit.policy import PolicySpec
from bandit.posterior import GaussianPosterior, Noise, Posterior
from bandit.spec import ExperimentSpec
from bandit.spec_file import from_data

SECRET = b"sixteen bytes or more"
SEEDS = st.integers(0, 2**32 - 1)
POLICIES = {
    "joint": PolicySpec(
        terms=(
            Term(of="context"),
            Term(of="context:variant", prior_sd=0.5),
            Term(of="channel"),
            Term(of="context:variant.attributes"),
            Term(of="variant.attributes:channel"),
            Term(of="variant:channel:slot"),
        )
    ),
    "disjoint": PolicySpec(terms=(Term(of="context:variant:channel:slot", prior_sd=1.0),)),
    "beta": PolicySpec(posterior="beta_bernoulli"),
}
every_policy = pytest.mark.parametrize("policy", POLICIES)


def level(name: str, generation: int = 0, **parts: object) -> Level:
    """Give a level whose attributes are a function of its name."""
    number = sum(map(ord, name)) % 7 / 7
    return Level(
        name=name,
        generation=generation,
        attributes=(("p", number), ("q", 1.0 - 2.0 * number)),
        **parts,  # type: ignore[arg-type]
    )


def spec(policy: str = "joint") -> ExperimentSpec:
    return ExperimentSpec(
        name="e",
        actions=ActionSpace(
            variants=(level("a"), level("b"), level("c")),
            channels=(Level(name="email"), Level(name="push")),
        ),
        context=(ContextField(name="age", kind="number", bounds=(-2, 2), required=True),),
        outcome=OutcomeRule(rewards=(Reward(name="r"),), window=60, aggregation="max"),
        policy=POLICIES[policy],
    )


FACTOR_NAMES = ("variants", "channels", "slots")


@st.composite
def edited(draw: st.DrawFn, space: ActionSpace, edit: int) -> ActionSpace:
    """Add some levels anywhere, and retire or bring back some."""
    parts: dict[str, tuple[Level, ...]] = {}
    latest = max(one.generation for levels in space.factors for one in levels)
    for plural, levels in zip(FACTOR_NAMES, space.factors, strict=True):
        kept = [replace(levels[0])]
        kept += [replace(one, retired=draw(st.booleans())) for one in levels[1:]]
        for i in range(draw(st.integers(0, 2 if plural == "variants" else 1))):
            name = f"{plural[0]}{edit}.{i}"
            generation = latest + draw(st.integers(1, 2))
            new = level(name, generation) if plural == "variants" else None
            place = draw(st.integers(0, len(kept)))
            kept.insert(place, new or Level(name=name, generation=generation))
        parts[plural] = tuple(kept)
    return ActionSpace(**parts)


def names(space: ActionSpace, action: int) -> tuple[str, ...]:
    return tuple(one.name for one in space.levels(action))


@given(data=st.data(), edits=st.integers(1, 4))
def test_indices_never_move_whatever_is_added_or_retired(data: st.DataObject, edits: int):
    space = spec().actions
    for edit in range(edits):
        after = data.draw(edited(space, edit))
        revision.check_revision(replace(spec(), actions=space), replace(spec(), actions=after))
        for action in range(space.size):
            assert names(after, action) == names(space, action)
        for action in range(after.size):
            assert after.index(*names(after, action)) == action
            at = [
                [one.name for one in f].index(n)
                for f, n in zip(after.factors, names(after, action), strict=True)
            ]
            assert after.table[action].tolist() == at
            assert after.mask[action] == (not any(one.retired for one in after.levels(action)))
        removed = {(r.action, r.reason) for r in after.removed(())}
        assert removed == {(int(a), "retired") for a in np.flatnonzero(~after.mask)}
        space = after


@given(sizes=st.tuples(*[st.integers(1, 4)] * 3))
def test_one_generation_is_in_order_of_the_product(sizes: tuple[int, int, int]):
    v, c, s = (tuple(Level(name=str(i), generation=3) for i in range(n)) for n in sizes)
    table = ActionSpace(variants=v, channels=c, slots=s).table
    np.testing.assert_array_equal(table, np.argwhere(np.ones(sizes)))


# --- growth -----------------------------------------------------------------------------


def teach(of: Experiment, posterior: Posterior, actions: int, *, seed: int, n: int = 25) -> None:
    """Fold outcomes of the first ``actions`` actions."""
    random = np.random.default_rng(seed)
    rows, chosen = random.uniform(-2, 2, (n, 1)), random.integers(0, actions, n)
    of.learn(posterior, rows, chosen.tolist(), random.uniform(0, 1, n), seq=posterior.seq + n)


@every_policy
@given(data=st.data(), seed=SEEDS)
@settings(max_examples=40)
def test_growing_and_learning_commute_bit_for_bit(policy: str, data: st.DataObject, seed: int):
    before = Experiment(spec(policy), secret=SECRET)
    k = before.spec.actions.size
    grown = replace(before.spec, actions=data.draw(edited(before.spec.actions, 1)))
    learned, fresh = before.prior(), before.prior()
    teach(before, learned, k, seed=seed)
    after, one = before.revise(learned, grown)
    _, other = before.revise(fresh, grown)
    teach(after, other, k, seed=seed)
    assert encoding.to_bytes(one) == encoding.to_bytes(other)
    teach(after, one, grown.actions.size, seed=seed + 1)
    teach(after, other, grown.actions.size, seed=seed + 1)
    assert encoding.to_bytes(one) == encoding.to_bytes(other)


@given(data=st.data(), seed=SEEDS)
@settings(max_examples=40)
def test_growing_twice_is_growing_once(data: st.DataObject, seed: int):
    first = Experiment(spec(), secret=SECRET)
    posterior = first.prior()
    teach(first, posterior, 6, seed=seed)
    middle = replace(first.spec, actions=data.draw(edited(first.spec.actions, 1)))
    last = replace(first.spec, actions=data.draw(edited(middle.actions, 2)))
    second, stepped = first.revise(posterior, middle)
    _, stepped = second.revise(stepped, last)
    _, at_once = first.revise(posterior, last)
    assert encoding.to_bytes(stepped) == encoding.to_bytes(at_once)


def score_moments(of: Experiment, posterior: Posterior, x: Floats) -> tuple[Floats, Floats]:
    """Give mean (k,) and covariance (k, k) of all scores, the dense way."""
    mean, lower, variance, *_ = cast("GaussianPosterior", posterior).moments()
    f, k = of.spec.features, of.spec.actions.size
    if f.is_disjoint:
        return mean @ x, np.diag(
            [variance * x @ np.linalg.solve(factor @ factor.T, x) for factor in lower]
        )
    phi = np.array([f.design(x, a) for a in range(k)])
    return phi @ mean[0], variance * phi @ np.linalg.solve(lower[0] @ lower[0].T, phi.T)


@pytest.mark.parametrize("policy", ["joint", "disjoint"])
@given(data=st.data(), seed=SEEDS)
@settings(max_examples=25)
def test_old_actions_keep_their_moments(policy: str, data: st.DataObject, seed: int):
    before = Experiment(spec(policy), secret=SECRET)
    posterior, k, x = before.prior(), 6, np.array([1.0, 0.7])
    teach(before, posterior, k, seed=seed)
    grown = replace(before.spec, actions=data.draw(edited(before.spec.actions, 1)))
    after, larger = before.revise(posterior, grown)
    old, new = score_moments(before, posterior, x), score_moments(after, larger, x)
    np.testing.assert_allclose(new[0][:k], old[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(new[1][:k, :k], old[1], rtol=1e-9, atol=1e-12)
    if policy == "disjoint":  # nothing is shared, so new actions are at the prior
        noise = cast("GaussianPosterior", larger).moments().noise_variance
        np.testing.assert_array_equal(new[0][k:], 0.0)
        np.testing.assert_allclose(np.diag(new[1])[k:], noise * (x @ x))


def test_a_new_level_is_known_by_what_it_shares_and_has_the_priors_rest():
    """A new variant: the shared block's moments, and the prior's for all that is its own."""
    terms = (Term(of="context"), Term(of="context:variant", prior_sd=0.5), Term(of="channel"))
    policy = PolicySpec(terms=terms, noise=Noise(sd=2.0))
    before = Experiment(replace(spec(), policy=policy), secret=SECRET)
    posterior = cast("GaussianPosterior", before.prior())
    teach(before, posterior, 6, seed=1, n=200)
    space = before.spec.actions
    more = replace(space, variants=(level("new", 1), *space.variants))
    after, larger = before.revise(posterior, replace(before.spec, actions=more))
    mean, covariance = score_moments(after, larger, x := np.array([1.0, 0.7]))
    new = more.index("new", "push", "now")
    weights, lower, *_ = posterior.moments()
    known = np.concatenate([x, np.zeros(6), [0.0, 1.0]])
    spread = 4.0 * known @ np.linalg.solve(lower[0] @ lower[0].T, known)
    assert new >= 6
    assert mean[new] == pytest.approx(known @ weights[0])
    assert covariance[new, new] == pytest.approx(spread + 4.0 * 0.25 * (x @ x))


@every_policy
def test_what_was_learned_before_is_not_touched(policy: str):
    before = Experiment(spec(policy), secret=SECRET)
    posterior = before.prior()
    teach(before, posterior, 6, seed=3)
    written = encoding.to_bytes(posterior)
    space = before.spec.actions
    more = replace(space, variants=(*space.variants, level("new", 1)))
    after, larger = before.revise(posterior, replace(before.spec, actions=more))
    assert encoding.to_bytes(posterior) == written
    assert (larger.seq, larger.count, larger.actions) == (25, 25, 8)
    assert after.secret == before.secret


@every_policy
def test_retiring_masks_and_forgets_nothing(policy: str):
    before = Experiment(spec(policy), secret=SECRET)
    posterior = before.prior()
    teach(before, posterior, 6, seed=3)
    space = before.spec.actions
    variants = (space.variants[0], replace(space.variants[1], retired=True), space.variants[2])
    fewer = replace(before.spec, actions=replace(space, variants=variants))
    after, same = before.revise(posterior, fewer)
    assert encoding.to_bytes(same) == encoding.to_bytes(posterior)
    np.testing.assert_array_equal(after.spec.actions.mask, [1, 1, 0, 0, 1, 1])
    decision = after.decide(
        after.publish(same, version=1),
        {"age": 0.3},
        decision_id=UUID(int=5),
        customer=b"c",
    )
    assert decision.propensities is not None
    np.testing.assert_array_equal(decision.propensities[2:4], 0.0)
    assert decision.propensities.sum() == pytest.approx(1.0)
    back, again = after.revise(same, before.spec)
    assert encoding.to_bytes(again) == encoding.to_bytes(posterior)
    assert back.spec == before.spec


def test_statistics_of_fixed_size_are_taken_over_and_unknown_ones_refused():
    class Windowed(GaussianPosterior):
        def __init__(self, of: ExperimentSpec, rows: int) -> None:
            super().__init__(of.features, Noise())
            self.window = np.full((rows, 2), 7.0)

        def arrays(self) -> dict[str, Floats]:
            return {**super().arrays(), "window": self.window}

    space = spec().actions
    more = replace(space, variants=(*space.variants, level("new", 1)))
    new = replace(spec(), actions=more)
    old, empty = Windowed(spec(), 3), Windowed(new, 3)
    old.window[1] = 5.0
    grown = revision.grow(old, empty, spec().features, new.features)
    np.testing.assert_array_equal(grown.arrays()["window"], old.window)
    with pytest.raises(BanditError, match="window"):
        revision.grow(old, Windowed(new, 4), spec().features, new.features)


# --- edits that are refused -------------------------------------------------------------

A, B, C = spec().actions.variants
EMAIL, PUSH = spec().actions.channels


def variants(*levels: Level) -> Callable[[ExperimentSpec], ExperimentSpec]:
    return lambda old: replace(old, actions=replace(old.actions, variants=levels))


def policy(**parts: object) -> Callable[[ExperimentSpec], ExperimentSpec]:
    return lambda old: replace(old, policy=replace(old.policy, **parts))  # type: ignore[arg-type]


REFUSED: list[tuple[Callable[[ExperimentSpec], ExperimentSpec], str, str]] = [
    (lambda old: replace(old, name="f"), "name", "new experiment"),
    (lambda old: replace(old, context=()), "context", "another meaning"),
    (lambda old: replace(old, outcome=replace(old.outcome, window=61)), "outcome", "meaning"),
    (variants(A, C), "actions.variants", "'b' is gone"),
    (variants(B, A, C), "actions.variants[0]", "keep the order"),
    (variants(A, B, C, level("d")), "actions.variants[3].generation", "above 0"),
    (variants(A, B, replace(C, generation=1)), "actions.variants[2].generation", "was 0, is 1"),
    (
        variants(A, B, replace(C, attributes=(("p", 0.0), ("q", 0.0)))),
        "actions.variants[2].attributes",
        "retire the level",
    ),
    (
        lambda old: replace(
            old, actions=replace(old.actions, slots=(Level(name="now", time="09:00"),))
        ),
        "actions.slots[0].time",
        "was None, is '09:00'",
    ),
    (policy(posterior="beta_bernoulli", terms=()), "policy.posterior", "would be lost"),
    (policy(terms=(Term(of="variant"), Term(of="channel"))), "policy.terms", "would change from"),
    (
        policy(terms=tuple(replace(t, prior_sd=0.9) for t in POLICIES["joint"].terms)),
        "policy.terms",
        "would change",
    ),
]


@pytest.mark.parametrize(("edit", "field", "said"), REFUSED)
def test_what_would_reset_or_reinterpret_is_refused(
    edit: Callable[[ExperimentSpec], ExperimentSpec], field: str, said: str
):
    with pytest.raises(InvalidInputError, match=said) as caught:
        Experiment(spec(), secret=SECRET).revise(
            Experiment(spec(), secret=SECRET).prior(), edit(spec())
        )
    assert caught.value.field == field


def test_default_terms_that_a_new_factor_would_change_are_refused():
    """A second channel would turn a disjoint experiment into a joint one, and lose its blocks."""
    old = replace(spec(), policy=PolicySpec())
    one = replace(old, actions=replace(old.actions, channels=(EMAIL,), variants=(A, B, C)))
    more = replace(one, actions=replace(one.actions, channels=(EMAIL, replace(PUSH, generation=1))))
    with pytest.raises(InvalidInputError, match="declare the old ones in"):
        revision.check_revision(one, more)


def test_a_single_level_with_attributes_can_get_company_under_the_default_terms():
    old = replace(spec(), policy=PolicySpec())
    old = replace(old, actions=replace(old.actions, variants=(A,)))
    new = replace(old, actions=replace(old.actions, variants=(A, level("d", 1))))
    before = Experiment(old, secret=SECRET)
    posterior = before.prior()
    teach(before, posterior, 2, seed=1)
    after, grown = before.revise(posterior, new)
    teach(after, grown, 4, seed=2)
    assert (grown.actions, grown.count) == (4, 50)


def test_much_may_change_in_a_running_experiment():
    old = spec()
    new = replace(
        old,
        description="new",
        actions=replace(
            old.actions,
            variants=(A, replace(B, retired=True), C),
            exclusions=(Exclusion(variant="c", channel="push", reason="no"),),
        ),
        policy=replace(old.policy, exploration=0.5, noise=Noise(sd=3.0), draws=64),
    )
    revision.check_revision(old, new)
    revision.check_revision(new, old)


@pytest.mark.parametrize("channels", [["x"], ["x", "y"]])
@pytest.mark.parametrize("half_life", [None, 50.0])
def test_a_logistic_belief_grows(channels: list[str], half_life: float | None):
    """The grown belief is the one that the revised experiment has after the same log."""

    def spec(*variants: dict[str, object]) -> ExperimentSpec:
        return from_data(
            {
                "name": "e",
                "actions": {"variants": list(variants), "channels": channels},
                "context": [{"name": "n", "kind": "number", "bounds": [-1, 1]}],
                "outcome": {"window": 1, "rewards": [{"name": "r"}], "aggregation": "max"},
                "policy": {"posterior": "logistic", "base_rate": 0.2}
                | ({} if half_life is None else {"half_life": half_life}),
            }
        )

    before = spec({"name": "a"}, {"name": "b"})
    after = spec({"name": "new", "generation": 1}, {"name": "a"}, {"name": "b", "retired": True})
    random = np.random.default_rng(1)
    old = Experiment(before, secret=b"sixteen bytes or more")
    posterior = old.prior()
    log = (
        random.uniform(-1, 1, (90, 1)),
        random.integers(0, before.actions.size, 90),
        random.integers(0, 2, 90).astype(float),
    )
    times = np.arange(90.0)
    old.learn(posterior, *log, seq=90, times=times)
    new, grown = old.revise(posterior, after)
    same = new.prior()
    new.learn(same, *log, seq=90, times=times)
    assert encoding.to_bytes(grown) == encoding.to_bytes(same)
    more = (np.zeros((1, 1)), [after.actions.size - 1], np.ones(1))
    for one in (grown, same):
        new.learn(one, *more, seq=91, times=np.array([95.0]))
    assert encoding.to_bytes(grown) == encoding.to_bytes(same)
    np.testing.assert_array_equal(grown.moments().mean, same.moments().mean)
