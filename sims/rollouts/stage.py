"""One replication: every policy decides for the same customers, block by block."""

from typing import NamedTuple, Protocol

import numpy as np

from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.kernels.compiling import Bools, Floats, Ints
from sims.rollouts import embedded
from sims.rollouts.embedded import Block, Player
from sims.rollouts.plan import AtOnce, Plan, Published
from sims.rollouts.published import Decided, Embedded, Run, micros
from sims.worlds import Arrivals, Course, History

BLOCK = 4_096
_CELLS = 1 << 20


class Scene(NamedTuple):
    """The next customers, and what does not depend on the policy.

    Attributes
    ----------
    arrivals, start
        Who comes, and the number of the first.
    x
        Features by Fourier declaration, since policies may differ in it.
    which, masks : (n,), (e, k)
        Row of ``masks`` with each one's eligible actions.
    expected, earned, due : (n, k)
        What every action is worth and would earn, and when; None where that depends on what
        a policy sent before, or nobody asks.
    """

    arrivals: Arrivals
    start: int
    which: Ints
    masks: Bools
    expected: Floats | None
    earned: Floats | None
    due: Floats | None


class Played(NamedTuple):
    """What a policy did with a block of customers.

    Attributes
    ----------
    actions : (n,)
        -1: nothing was sent.
    values, best : (n,)
        Expected outcome of what was chosen, and of the best eligible action.
    rewards : (n,)
        Outcomes; NaN: nothing was ever heard.
    decided
        Propensities and versions, where the policy was published.
    """

    actions: Ints
    values: Floats
    best: Floats
    rewards: Floats
    decided: tuple[Decided, ...] = ()


class Performer(Protocol):
    """A policy that goes through a course."""

    def perform(self, scene: Scene) -> Played:
        """Decide for the next customers, and learn from what is known of those before."""
        ...


def block_size(actions: int) -> int:
    """Give how many customers are drawn together: fewer where there are many actions."""
    return max(min(BLOCK, _CELLS // actions), 64)


def performer(plan: Plan, policy: int, replication: int, course: Course) -> Performer:
    """Give a policy at the start of a replication."""
    experiment = plan.experiment(policy, replication)
    if isinstance(plan.learning, AtOnce):
        if embedded.can_learn_at_once(experiment):
            return _AtOnce(experiment, course)
        every = Published(outcomes=1, seconds=86_400.0)
        return Cadenced(Run(Embedded(experiment), every, is_timed=True), course)
    is_timed = experiment.spec.policy.half_life is not None
    return Cadenced(Run(Embedded(experiment), plan.learning, is_timed=is_timed), course)


class Scenes:
    """The customers of a replication in blocks, checked against the experiment."""

    def __init__(self, plan: Plan, course: Course, *, all_outcomes: bool) -> None:
        self._plan = plan
        self._course = course
        self._all_outcomes = all_outcomes
        self._history = course.history()
        self._rules: dict[tuple[object, ...], int] = {}
        self._masks: list[Bools] = []

    def read(self, start: int, stop: int) -> Scene:
        """Give customers ``start`` to ``stop - 1``.

        Raises
        ------
        InvalidInputError
            If a context does not fit the experiment, or what is expected is no number.
        """
        course, spec = self._course, self._plan.spec
        arrivals = course.arrivals(start, stop)
        try:
            spec.schema.check_rows(arrivals.rows)
        except InvalidInputError as error:
            raise error.under(f"world, block of customers from {start}: rows") from None
        which, masks = self._eligible(arrivals)
        expected = earned = due = None
        if course.is_memoryless:
            expected = course.expected(arrivals, start, self._history)
            check_expected(expected, start)
            if self._all_outcomes:
                earned, due = all_outcomes(course, arrivals, start, expected)
        return Scene(arrivals, start, which, masks, expected, earned, due)

    def _eligible(self, arrivals: Arrivals) -> tuple[Ints, Bools]:
        space = self._plan.spec.actions
        n = len(arrivals.times)
        if not arrivals.exclusions:
            return np.zeros(n, dtype=np.int64), space.mask.reshape(1, -1).copy()
        places: list[int] = []
        for rules in arrivals.exclusions:
            if rules not in self._rules:
                mask = space.eligible(rules)
                if not mask.any():
                    raise InvalidInputError(
                        f"leaves no action to customer {len(places)} of a block", field="world"
                    )
                self._rules[rules] = len(self._masks)
                self._masks.append(mask)
            places.append(self._rules[rules])
        return np.array(places, dtype=np.int64), np.array(self._masks, dtype=np.bool_)


def check_expected(expected: Floats, start: int) -> None:
    """Refuse an expected outcome that is no number."""
    if not np.isfinite(expected).all():
        row, action = np.argwhere(~np.isfinite(expected))[0].tolist()
        raise InvalidInputError(
            f"expects {expected[row, action]} of action {action} for customer {start + row}",
            field="world",
        )


def all_outcomes(
    course: Course, arrivals: Arrivals, start: int, expected: Floats
) -> tuple[Floats, Floats]:
    """Give what every action would earn, and when that is known, shapes (n, k).

    Notes
    -----
    The responses to every action in turn, or all together where the course knows how: the same
    bits.
    """
    if course.is_memoryless:
        return course.all_outcomes(arrivals, start, expected)
    earned, due = np.empty(expected.shape), np.empty(expected.shape)
    for action in range(expected.shape[1]):
        actions = np.full(len(expected), action)
        responses = course.respond(arrivals, start, actions, expected)
        earned[:, action], due[:, action] = responses.rewards, responses.due
    return earned, due


def part(arrivals: Arrivals, where: slice) -> Arrivals:
    """Give some customers of a block."""
    rules = arrivals.exclusions
    return Arrivals(
        arrivals.rows[where],
        arrivals.times[where],
        arrivals.customers[where],
        rules[where] if rules else rules,
    )


def optimum(expected: Floats, which: Ints, masks: Bools) -> Floats:
    """Give the best expected outcome of the eligible actions, shape (n,)."""
    if masks.all():
        return np.asarray(expected.max(axis=1))
    return np.asarray(np.where(masks[which], expected, -np.inf).max(axis=1))


class _AtOnce:
    """A policy that learns at once."""

    def __init__(self, experiment: Experiment, course: Course) -> None:
        self._player: Player = embedded.begin(experiment)
        self._encoder = experiment.spec.encoder
        self._course = course
        self._history = course.history()

    def perform(self, scene: Scene) -> Played:
        """Play the block at once, or in stretches in which nobody comes twice."""
        if scene.expected is not None and scene.earned is not None and scene.due is not None:
            return self._play(scene, slice(None), (scene.expected, scene.earned, scene.due))
        parts = [self._remembering(scene, where) for where in self._course.runs(scene.arrivals)]
        return joined(parts)

    def _remembering(self, scene: Scene, where: slice) -> Played:
        course, first = self._course, scene.start + where.start
        arrivals = part(scene.arrivals, where)
        expected = course.expected(arrivals, first, self._history)
        check_expected(expected, first)
        earned, due = all_outcomes(course, arrivals, first, expected)
        played = self._play(scene, where, (expected, earned, due))
        remember(course, self._history, arrivals, first, (played.actions, expected))
        return played

    def _play(self, scene: Scene, where: slice, outcomes: tuple[Floats, Floats, Floats]) -> Played:
        expected, earned, due = outcomes
        which, times = scene.which[where], scene.arrivals.times[where]
        x = self._encoder.encode(np.ascontiguousarray(scene.arrivals.rows[where]))
        first = scene.start + (where.start or 0)
        actions = self._player.play(
            Block(first, x, np.ascontiguousarray(times), which, scene.masks, earned, due)
        )
        at = np.arange(len(actions)), actions
        return Played(actions, expected[at], optimum(expected, which, scene.masks), earned[at])


class Cadenced:
    """A policy that is published now and then.

    Parameters
    ----------
    run
        Its cadence, and who decides.
    course
        Whose customers come.
    """

    def __init__(self, run: Run, course: Course) -> None:
        self._run = run
        self._course = course
        self._history = course.history()

    def perform(self, scene: Scene) -> Played:
        """Play the block in calls between which nothing is published."""
        stretches = [slice(0, len(scene.arrivals.times))]
        if not self._course.is_memoryless:
            stretches = self._course.runs(scene.arrivals)
        return joined([played for where in stretches for played in self._stretch(scene, where)])

    def _stretch(self, scene: Scene, where: slice) -> list[Played]:
        course, first = self._course, scene.start + where.start
        arrivals = part(scene.arrivals, where)
        expected = scene.expected
        if expected is None:
            expected = course.expected(arrivals, first, self._history)
            check_expected(expected, first)
        best = optimum(expected, scene.which[where], scene.masks)
        instants = micros(arrivals.times)
        found, at = [], 0
        while at < len(instants):
            self._run.reach(int(instants[at]))
            stop = at + self._run.together(instants[at:])
            some = part(arrivals, slice(at, stop))
            decided = self._run.decide(some, first + at)
            values = expected[at:stop]
            responses = course.respond(some, first + at, decided.actions, values)
            self._run.expect(decided, responses.rewards, responses.due, instants[at:stop])
            self._history.add(
                some.customers, some.times, decided.actions >= 0, responses.unsubscribed
            )
            worth = np.where(
                decided.actions >= 0,
                values[np.arange(stop - at), decided.actions],
                course.without_message,
            )
            found.append(
                Played(decided.actions, worth, best[at:stop], responses.rewards, (decided,))
            )
            at = stop
        return found


def remember(
    course: Course,
    history: History,
    arrivals: Arrivals,
    first: int,
    sent: tuple[Ints, Floats],
) -> None:
    """Note what was sent to customers who are all different, and what they expected of it."""
    actions, expected = sent
    responses = course.respond(arrivals, first, actions, expected)
    history.add(arrivals.customers, arrivals.times, actions >= 0, responses.unsubscribed)


def joined(parts: list[Played]) -> Played:
    """Give several stretches of a block as one."""
    if len(parts) == 1:
        return parts[0]
    return Played(
        np.concatenate([p.actions for p in parts]),
        np.concatenate([p.values for p in parts]),
        np.concatenate([p.best for p in parts]),
        np.concatenate([p.rewards for p in parts]),
        tuple(d for p in parts for d in p.decided),
    )
