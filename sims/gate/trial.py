"""A trial: the experiment as it would be served, on the customers of one world.

The policy learns with the declared publishing, groups included. What business as usual and a
uniform draw would have earned from the same customers is computed beside it.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from bandit import rng
from bandit.decision import Group
from bandit.experiment import Experiment
from bandit.kernels.compiling import Bools, Floats, Ints
from bandit.policy import ActionName
from bandit.question import Questions
from bandit.snapshot import Asked
from bandit.spec import ExperimentSpec
from sims.gate.segments import Segment, segments_of
from sims.rollouts.plan import Plan, Published
from sims.rollouts.published import Embedded, Run
from sims.rollouts.stage import Cadenced, Played, Scene, Scenes, block_size, part
from sims.worlds import Course, World

POINTS = 50
PUBLICATIONS = 200
"""Publications of a run, at most: with fewer a policy learns later, never sooner."""
LOOKS = 512
"""Customers whose propensities are looked at, at the end of a run."""
REFERENCES = ("baseline", "uniform", "optimum")


class Look(NamedTuple):
    """The last belief of a run, for some customers of the bandit group.

    Attributes
    ----------
    propensities, eligible : (n, k)
    chosen : (n,)
        What was drawn from them.
    means, sds : (n, k)
        Of every action's score, with an exploration of 1.
    """

    propensities: Floats
    eligible: Bools
    chosen: Ints
    means: Floats
    sds: Floats


class Replication(NamedTuple):
    """One replication.

    Attributes
    ----------
    earned : (4, points)
        Cumulated expected outcomes of the policy, then of ``REFERENCES``.
    late : (2, segments), sizes : (segments,)
        Sums for policy and baseline, and customers, of every segment in the second half.
    got, even : (points, k)
        Customers of every action since the point before, and how many an even share would be.
    weights : (m,)
        1 / propensity of the policy's own choices, some of them.
    moments : (2, 3)
        Of bandit and random group in the second half: outcomes, sum, sum of squares.
    look
        The last belief.
    rows, rewards
        Customers of the random draw and their outcomes, some of them.
    """

    earned: Floats
    late: Floats
    sizes: Ints
    got: Ints
    even: Floats
    weights: Floats
    moments: Floats
    look: Look
    rows: Floats
    rewards: Floats


class Trial(NamedTuple):
    """All replications of one world.

    Attributes
    ----------
    world
        Its name.
    points : (points,)
        Customers after which sums were kept.
    segments
        Names.
    has_baseline
        Whether the experiment declares one; else the uniform draw is what it is measured by.
    runs
        The replications in order.
    """

    world: str
    points: Ints
    segments: tuple[str, ...]
    has_baseline: bool
    runs: tuple[Replication, ...]


def trial(
    spec: ExperimentSpec,
    world: World,
    *,
    name: str,
    seed: int,
    passed: Callable[[int], None] = lambda _: None,
) -> Trial:
    """Run the experiment on the customers of a world, as often and as long as its gate says.

    Raises
    ------
    InvalidInputError
        If the world was not made for the experiment.
    """
    gate = spec.gate
    points = np.unique(np.ceil(np.linspace(0, gate.customers, POINTS + 1)[1:]).astype(np.int64))
    first = Course(world, spec, seed=seed, replication=0).arrivals(0, min(gate.customers, 2_000))
    segments = segments_of(spec, first.rows)
    runs = tuple(
        _Play(spec, world, seed, replication).play(points, segments, passed)
        for replication in range(gate.replications)
    )
    names = tuple(segment.name for segment in segments)
    return Trial(name, points, names, spec.baseline is not None, runs)


def cadence(spec: ExperimentSpec, seconds: float) -> Published:
    """Give the declared publishing, or a slower one that publishes ``PUBLICATIONS`` times.

    Parameters
    ----------
    seconds
        That the run takes in the world's time.
    """
    return Published(
        outcomes=max(spec.publishing.outcomes, math.ceil(spec.gate.customers / PUBLICATIONS)),
        seconds=min(max(spec.publishing.seconds, seconds / PUBLICATIONS), 86_400.0),
    )


class _Watched(Embedded):
    """The engine that serves, whose last belief can be looked at."""

    def look(self, rows: Floats, seed: int) -> Look:
        """Decide once more for some customers, all in the bandit group."""
        spec, n = self._experiment.spec, len(rows)
        alone = replace(spec.groups, random=0.0, baseline=0.0, no_contact=0.0)
        experiment = Experiment(replace(spec, groups=alone), secret=self._experiment.secret)
        snapshot = experiment.publish(self._posterior, version=self._snapshot.version + 1)
        ids = rng.decision_ids(
            experiment.secret, spec.name, [f"look-{seed}-{i}" for i in range(n)], 0
        )
        keys = rng.customer_keys(experiment.secret, "gate", [str(i) for i in range(n)])
        found = experiment.decide_columns(snapshot, Questions(ids, keys, rows), propensities=True)
        assert found.propensities is not None  # noqa: S101  asked for
        plain = Experiment(
            replace(spec, policy=replace(spec.policy, exploration=1.0)),
            secret=self._experiment.secret,
        ).publish(self._posterior, version=0)
        x = spec.encoder.encode(np.ascontiguousarray(rows))
        mask = spec.actions.mask.reshape(1, -1)
        streams = np.zeros((n, 4), dtype=np.uint32)
        asked = Asked(x, np.zeros(n, dtype=np.int64), mask, streams)
        means, sds = plain.belief.moments(asked)
        return Look(found.propensities, np.repeat(mask, n, 0), found.actions, means, sds)


class _Reference:
    """A fixed action, or a uniform draw, for customers who remember what they got."""

    def __init__(self, course: Course, action: int | None, seed: int) -> None:
        self._course, self._action = course, action
        self._history = course.history()
        self._rng = np.random.default_rng(seed)

    def values(self, scene: Scene) -> tuple[Floats, Ints, Floats]:
        """Give expected outcomes, actions and outcomes of a block, each of shape (n,)."""
        if scene.expected is not None:
            actions = self._actions(scene.masks[scene.which])
            got = self._course.respond(scene.arrivals, scene.start, actions, scene.expected)
            return self._worth(scene.expected, actions, scene.masks[scene.which]), actions, got[0]
        found = []
        for where in self._course.runs(scene.arrivals):
            arrivals, start = part(scene.arrivals, where), scene.start + where.start
            expected = self._course.expected(arrivals, start, self._history)
            masks = scene.masks[scene.which[where]]
            actions = self._actions(masks)
            got = self._course.respond(arrivals, start, actions, expected)
            self._history.add(arrivals.customers, arrivals.times, actions >= 0, got.unsubscribed)
            found.append((self._worth(expected, actions, masks), actions, got.rewards))
        values, actions, rewards = (np.concatenate(column) for column in zip(*found, strict=True))
        return values, actions, rewards

    def _actions(self, masks: Bools) -> Ints:
        """Draw uniformly; where there is a fixed action, take it, or nothing."""
        if self._action is not None:
            return np.where(masks[:, self._action], self._action, -1)
        order = np.cumsum(masks, axis=1)
        picks = 1 + (self._rng.random(len(masks)) * order[:, -1]).astype(np.int64)
        return np.asarray((order >= picks[:, None]).argmax(axis=1))

    def _worth(self, expected: Floats, actions: Ints, masks: Bools) -> Floats:
        """Give what is expected: of a uniform draw its mean, which is exact."""
        if self._action is None:
            return np.asarray((expected * masks).sum(axis=1) / masks.sum(axis=1))
        chosen = expected[np.arange(len(actions)), actions]
        return np.where(actions >= 0, chosen, self._course.without_message)


class _Play:
    """One replication: the policy, business as usual, and a uniform draw, block by block."""

    def __init__(self, spec: ExperimentSpec, world: World, seed: int, replication: int) -> None:
        n = spec.gate.customers
        self._spec, self._seed = spec, seed * 1_000_003 + replication
        plan = Plan(
            spec=spec,
            world=world,
            policies=(("policy", spec.policy),),
            customers=n,
            replications=replication + 1,
            seed=seed,
        )
        course = plan.course(replication)
        times = course.arrivals(0, 1).times[0], course.arrivals(n - 1, n).times[0]
        secret = plan.experiment(0, replication).secret
        self._engine = _Watched(Experiment(spec, secret=secret))  # with its traffic groups
        is_timed = spec.policy.half_life is not None
        learning = cadence(spec, float(times[1] - times[0]))
        self._policy = Cadenced(Run(self._engine, learning, is_timed=is_timed), course)
        self._scenes = Scenes(plan, course, all_outcomes=False)
        self._usual = _Reference(course, _index(spec, spec.baseline), self._seed)
        self._even = _Reference(course, None, self._seed)

    def play(
        self, points: Ints, segments: tuple[Segment, ...], passed: Callable[[int], None]
    ) -> Replication:
        """Play all customers."""
        n, k = self._spec.gate.customers, self._spec.actions.size
        kept = _Kept(n, k)
        size = block_size(k)
        for start in range(0, n, size):
            stop = min(start + size, n)
            scene = self._scenes.read(start, stop)
            played = self._policy.perform(scene)
            kept.take(slice(start, stop), scene, played)
            even, drawn, rewards = self._even.values(scene)
            usual = self._usual.values(scene)[0]
            kept.values[1:3, start:stop] = usual, even
            heard = ~np.isnan(rewards) & (drawn >= 0)
            kept.sample(scene.arrivals.rows[heard], rewards[heard])
            passed(stop - start)
        look = self._engine.look(kept.rows[-min(LOOKS, n) :], self._seed)
        return kept.summary(points, segments, look)


class _Kept:
    """What a replication keeps of every customer, until it is summed up."""

    def __init__(self, n: int, k: int) -> None:
        self.values = np.empty((4, n))
        self.rows = np.empty((n, 0))
        self.actions = np.empty(n, dtype=np.int64)
        self.rewards, self.groups = np.empty(n), np.empty(n, dtype=np.int64)
        self.propensities = np.empty(n)
        self.which = np.empty(n, dtype=np.int64)
        self.masks = np.zeros((0, k), dtype=np.bool_)
        self._sample_rows: list[Floats] = []
        self._sample_rewards: list[Floats] = []

    def take(self, where: slice, scene: Scene, played: Played) -> None:
        """Keep a block of the policy's."""
        rows = scene.arrivals.rows
        if self.rows.shape[1] != rows.shape[1]:
            self.rows = np.empty((len(self.rows), rows.shape[1]))
        self.rows[where] = rows
        self.values[0, where], self.values[3, where] = played.values, played.best
        self.actions[where], self.rewards[where] = played.actions, played.rewards
        self.groups[where] = np.concatenate([d.groups for d in played.decided])
        self.propensities[where] = np.concatenate([d.propensities for d in played.decided])
        self.which[where], self.masks = scene.which, scene.masks  # masks only grow

    def sample(self, rows: Floats, rewards: Floats) -> None:
        """Keep some customers of the uniform draw."""
        if sum(map(len, self._sample_rows)) < 4_096:
            self._sample_rows.append(rows)
            self._sample_rewards.append(rewards)

    def summary(self, points: Ints, segments: tuple[Segment, ...], look: Look) -> Replication:
        """Sum up."""
        n, k = len(self.which), self.masks.shape[1]
        interval = np.searchsorted(points, np.arange(n), side="right")
        sent = self.actions >= 0
        got = np.zeros((len(points), k), dtype=np.int64)
        np.add.at(got, (interval[sent], self.actions[sent]), 1)
        cells = interval[sent] * len(self.masks) + self.which[sent]
        seen = np.bincount(cells, minlength=len(points) * len(self.masks))
        shares = self.masks / self.masks.sum(axis=1, keepdims=True)
        even = seen.reshape(len(points), len(self.masks)) @ shares
        half = n // 2
        late, sizes = self._by_segment(segments, half)
        own = (self.groups == int(Group.BANDIT)) & sent
        return Replication(
            earned=np.cumsum(self.values, axis=1)[:, points - 1],
            late=late,
            sizes=sizes,
            got=got,
            even=even,
            weights=1.0 / self.propensities[own][-2_000:],
            moments=np.array([self._moments(g, half) for g in (Group.BANDIT, Group.RANDOM)]),
            look=look,
            rows=np.concatenate(self._sample_rows),
            rewards=np.concatenate(self._sample_rewards),
        )

    def _by_segment(self, segments: tuple[Segment, ...], half: int) -> tuple[Floats, Ints]:
        members = [segment.members(self.rows[half:]) for segment in segments]
        late = np.array([[v[half:][m].sum() for m in members] for v in self.values[:2]])
        return late.reshape(2, len(segments)), np.array([m.sum() for m in members], dtype=np.int64)

    def _moments(self, group: Group, half: int) -> tuple[float, float, float]:
        mine = self.rewards[half:][self.groups[half:] == int(group)]
        mine = mine[~np.isnan(mine)]
        return float(len(mine)), float(mine.sum()), float((mine * mine).sum())


def _index(spec: ExperimentSpec, name: ActionName | None) -> int | None:
    if name is None:
        return None
    return spec.actions.index(name.variant, name.channel, name.slot)
