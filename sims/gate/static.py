"""Checks that need no customers: the specification says it all."""

import re
from dataclasses import replace

import numpy as np

from bandit.errors import BanditError
from bandit.experiment import Experiment
from bandit.policy import WITHOUT_MODEL
from bandit.snapshot import Asked
from bandit.spec import ExperimentSpec
from bandit.verdict import Check

SOURCE = "the specification"
LEAST_EXPLORATION = 0.01
UNEXPLORED = (
    "Without exploration the policy keeps what looked best by accident, and never learns that "
    "another action is better."
)
LEAST_ROOM = 0.5
_SCALES = {
    "thompson_sampling": "exploration",
    "top_two": "exploration",
    "linucb": "confidence",
    "epsilon_greedy": "epsilon",
}
"""What a policy's exploration grows with, where that has no unit. The ``temperature`` of softmax
has the outcome's: what it is worth is seen in a world."""
_LATER = {"outcome", "reward", "label", "target", "response", "converted"}
"""Names of what is known only afterwards, whatever the rewards are called."""


def check_spec(spec: ExperimentSpec) -> list[Check]:
    """Check what the specification alone decides."""
    found = [_exploration(spec), _room(spec), _names(spec)]
    if spec.policy.kind not in WITHOUT_MODEL:
        found.append(_posterior(spec))
    return found


def _exploration(spec: ExperimentSpec) -> Check:
    policy = spec.policy
    scale = _SCALES.get(policy.kind)
    if scale is None:
        told = f"a policy of kind {policy.kind}"
        return Check(name="exploration", source=SOURCE, passed=True, found=told, why=UNEXPLORED)
    value = float(getattr(policy, scale))
    told = f"policy.{scale} is {value:g}"
    return Check.at_least(
        "exploration", SOURCE, value, LEAST_EXPLORATION, found=told, why=UNEXPLORED
    )


def _room(spec: ExperimentSpec) -> Check:
    policy, actions = spec.full_policy, int(spec.actions.mask.sum())
    is_learning = policy.kind not in WITHOUT_MODEL
    floor = (policy.floor or 0.0) if is_learning else 0.0
    left = 1.0 - floor * actions
    return Check.at_least(
        "floor_room",
        SOURCE,
        left,
        LEAST_ROOM,
        found=f"a floor of {floor:.4g} for each of {actions} actions leaves {left:.0%} of the "
        "decisions to the policy",
        why="A floor that takes most decisions starves the best action of the customers it "
        "should get, and the policy can not show what it learned.",
    )


def _names(spec: ExperimentSpec) -> Check:
    """Look for context fields that are named for what happens only after the decision."""
    later = {_stem(name) for name in spec.outcome.by_name} | {_stem(name) for name in _LATER}
    bad = [field.name for field in spec.context if _stem(field.name) in later]
    return Check.at_most(
        "leak_by_name",
        SOURCE,
        float(len(bad)),
        0.0,
        found=f"context fields named for an outcome: {', '.join(bad)[:500]}"
        if bad
        else "no context field is named for an outcome",
        why="A field that is known only after the decision is not there when it is needed; what "
        "was learned from it is worthless.",
    )


def _stem(name: str) -> str:
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for ending in ("ed", "d"):
        if plain.endswith(ending) and len(plain) > len(ending) + 2:
            return plain.removesuffix(ending).removesuffix("e")
    return plain.removesuffix("e")


def _posterior(spec: ExperimentSpec) -> Check:
    """Publish the prior, and one that has seen the same outcome a hundred times."""
    plain = Experiment(
        replace(spec, policy=replace(spec.policy, exploration=1.0)), secret=b"gate" * 8
    )
    fields, k = len(spec.context), spec.actions.size
    rows = np.full((100, fields), np.nan)
    told = "the spread of every score is positive and finite"
    least = 0.0
    try:
        posterior = plain.prior()
        value = spec.outcome.default
        actions = np.arange(100) % k
        spreads = []
        for seq in (0, 1):
            if seq:
                plain.learn(
                    posterior,
                    rows,
                    actions.tolist(),
                    np.full(100, value),
                    seq=seq,
                    times=np.arange(100.0),
                )
            snapshot = plain.publish(posterior, version=seq)
            x = spec.encoder.encode(np.full((1, fields), np.nan))
            asked = Asked(
                x, np.zeros(1, np.int64), np.ones((1, k), np.bool_), np.zeros((1, 4), np.uint32)
            )
            means, sds = snapshot.belief.moments(asked)
            spreads.append(sds if np.isfinite(means).all() else np.zeros_like(sds))
        least = float(min(s.min() for s in spreads))
    except BanditError as error:
        told = f"it can not be published: {error}"[:500]
    healthy = bool(np.isfinite(least) and least > 0.0)
    if not healthy and not told.startswith("it"):
        told = "some score has no spread, or is no number"
    return Check.at_least(
        "posterior",
        SOURCE,
        least if np.isfinite(least) else 0.0,
        0.0,
        holds=healthy,
        found=told,
        why="A belief without spread is sure of what it has not seen, and explores nothing.",
    )
