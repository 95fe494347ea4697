"""Loops that learn at once choose as one customer after the other would, and as is published."""

import heapq
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bandit import online, rng
from bandit.kernels.moments import joint_means
from bandit.kernels.propensities import apply_floor, floor_draw, pick
from bandit.kernels.streams import uniform
from bandit.snapshot import Asked
from sims.kernels.rollout import _PICK
from sims.rollouts import (
    Plan,
    embedded,
    stage,
)
from sims.rollouts.embedded import Block
from tests.sims.rollout_plans import MODELS, OWN, TERMS, plan, played, spec, world


def stepwise(of: Plan) -> tuple[list[int], list[float]]:
    """Play one customer after the other, with nothing but the belief of ``bandit.online``."""
    experiment, course = of.experiment(0, 0), of.course(0)
    stream = rng.words(rng.keyed(experiment.secret, "at-once", experiment.spec.name, b"")[:16])
    policy = experiment.spec.policy
    belief = online.begin(experiment.prior(), exploration=policy.exploration, stream=stream)
    history, waiting, actions, rewards = course.history(), [], [], []
    for i in range(of.customers):
        arrivals = course.arrivals(i, i + 1)
        x = experiment.spec.encoder.encode(arrivals.rows)[0]
        mask = of.spec.actions.eligible(arrivals.exclusions[0] if arrivals.exclusions else ())
        while waiting and waiting[0][0] <= arrivals.times[0]:
            _, _, before, action, reward = heapq.heappop(waiting)
            belief.learn(before, action, reward)
        action = -1
        if policy.floor:
            action, _ = floor_draw(mask, policy.floor, uniform(stream, (i << 20) + _PICK))
        if action < 0:
            action = belief.draw(x, mask, i)
        expected = course.expected(arrivals, i, history)
        response = course.respond(arrivals, i, np.array([action]), expected)
        history.add(arrivals.customers, arrivals.times, np.array([True]), response.unsubscribed)
        actions.append(action)
        rewards.append(float(response.rewards[0]))
        if not math.isnan(rewards[-1]):
            heapq.heappush(waiting, (float(response.due[0]), i, x, action, rewards[-1]))
    return actions, rewards


@pytest.mark.parametrize("name", MODELS)
def test_a_block_is_played_as_one_customer_after_the_other_bit_for_bit(name: str):
    of = plan(*MODELS[name]())
    actions, rewards = played(of)
    expected, earned = stepwise(of)
    assert actions.tolist() == expected
    np.testing.assert_array_equal(rewards, earned)
    assert len(set(expected)) > 2
    if "late" in name:
        assert np.isnan(rewards).any()


@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=4))
@settings(max_examples=10)
def test_blocks_of_any_size_give_the_same(sizes: list[int]):
    of = plan(*MODELS["shared, late and lost"](), customers=150)
    whole = played(of, 150)
    for size in sizes:
        np.testing.assert_array_equal(played(of, size)[0], whole[0])


RULES = {
    "epsilon_greedy": {"epsilon": 0.2},
    "softmax": {"temperature": 0.1},
    "linucb": {"confidence": 0.5},
    "top_two": {"top_two_share": 0.6},
}


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_other_kinds_choose_as_the_published_policy_does(kind: str, floor: float):
    of = plan(spec(kind=kind, floor=floor, terms=OWN, **RULES[kind]), world(), customers=120)
    experiment = of.experiment(0, 0)
    course = of.course(0)
    scene = stage.Scenes(of, course, all_outcomes=True).read(0, 120)
    player = embedded.begin(experiment)
    x = experiment.spec.encoder.encode(scene.arrivals.rows)
    mask = of.spec.actions.mask.reshape(1, -1)
    for t in range(120):
        belief = player._belief.belief()
        one = np.zeros(1, dtype=np.int64)
        asked = Asked(x[t : t + 1], one, mask, np.zeros((1, 4), dtype=np.uint32))
        p = experiment.spec.chooser.choose(belief, asked, propensities=True).propensities[0]
        u = uniform(online.online.stream_of(player._belief.arrays[1]), (t << 20) + _PICK)
        row = slice(t, t + 1)
        times = scene.arrivals.times[row]
        block = Block(t, x[row], times, one, mask, scene.earned[row], scene.due[row])
        assert player.play(block)[0] == pick(p, u)


def test_shared_means_choose_as_the_published_policy_does():
    of = plan(spec(kind="epsilon_greedy", epsilon=0.3, terms=TERMS), world(), customers=80)
    experiment, course = of.experiment(0, 0), of.course(0)
    scene = stage.Scenes(of, course, all_outcomes=True).read(0, 80)
    actions = embedded.begin(experiment).play(
        Block(
            0,
            experiment.spec.encoder.encode(scene.arrivals.rows),
            scene.arrivals.times,
            *(scene.which, scene.masks, scene.earned, scene.due),
        )
    )
    posterior, mask = experiment.prior(), of.spec.actions.mask
    stream = rng.words(rng.keyed(experiment.secret, "at-once", "six", b"")[:16])
    for t in range(80):
        mean = posterior.moments().mean[0]
        x = experiment.spec.encoder.encode(scene.arrivals.rows[t : t + 1])
        f = experiment.spec.features
        scores = joint_means(x, mean, f.layout, f.planes)[0]
        p = np.full(6, 0.3 / 6)
        p[int(np.argmax(np.round(scores, 9)))] += 0.7
        apply_floor(mask, 0.0, p)
        assert actions[t] == pick(p, uniform(stream, (t << 20) + _PICK))
        reward = scene.earned[t, actions[t]]
        rows = scene.arrivals.rows[t : t + 1]
        experiment.learn(posterior, rows, [actions[t]], np.array([reward]), seq=t + 1)


def test_shared_bounds_are_exact():
    """LinUCB by hand: every action's feature vector against the whole covariance."""
    of = plan(spec(kind="linucb", confidence=0.7, exploration=1.5, terms=TERMS), world(), 80)
    experiment, course = of.experiment(0, 0), of.course(0)
    scene = stage.Scenes(of, course, all_outcomes=True).read(0, 80)
    x = experiment.spec.encoder.encode(scene.arrivals.rows)
    times = scene.arrivals.times
    player = embedded.begin(experiment)
    actions = player.play(Block(0, x, times, scene.which, scene.masks, scene.earned, scene.due))
    posterior, f = experiment.prior(), experiment.spec.features
    for t in range(80):
        now = posterior.moments()
        each = [
            joint_means(x[t : t + 1], one, f.layout, f.planes)[0] for one in np.eye(now.mean.size)
        ]
        phi, precision = np.array(each).T, now.lower[0] @ now.lower[0].T
        variance = now.noise_variance * np.einsum("ai,ij,aj->a", phi, np.linalg.inv(precision), phi)
        bounds = phi @ now.mean[0] + 0.7 * 1.5 * np.sqrt(variance)
        assert bounds[actions[t]] > bounds.max() - 1e-9
        rewards, rows = scene.earned[t, actions[t : t + 1]], scene.arrivals.rows[t : t + 1]
        experiment.learn(posterior, rows, [actions[t]], rewards, seq=t + 1)


@pytest.mark.parametrize(
    "policy",
    [
        {"posterior": "beta_bernoulli"},
        {"pooled": True, "terms": OWN},
        {"half_life": 3_600.0},
        {"kind": "top_two", "terms": TERMS},
    ],
)
def test_what_has_no_loop_is_published_after_every_outcome(policy: dict[str, Any]):
    of = plan(spec(**policy), world(), customers=60)
    assert not embedded.can_learn_at_once(of.experiment(0, 0))
    course = of.course(0)
    performer = stage.performer(of, 0, 0, course)
    done = performer.perform(stage.Scenes(of, course, all_outcomes=True).read(0, 60))
    versions = np.concatenate([d.versions for d in done.decided])
    assert versions.tolist() == list(range(60))  # every outcome is known before the next customer
    assert {int(r) for d in done.decided for r in d.reasons} == {1}  # groups are the server's
