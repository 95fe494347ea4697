"""From responses to outcomes: what the experiment's rule makes of an event, and when."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from sims.worlds import draws
from sims.worlds.world import Delay, World


class Heard(NamedTuple):
    """Outcomes and when they are known, shape (n,) each."""

    outcomes: Floats
    due: Floats


class Feedback:
    """How the outcomes of one experiment come from one world's responses.

    An event in time makes the outcome its value times its weight. Without one the outcome is the
    experiment's default, known at the window's end; where silence is ignored, a failure is
    reported too, as an event with value 0, and what comes late has no outcome.

    Parameters
    ----------
    world, spec
        A world that fits the experiment.
    """

    def __init__(self, world: World, spec: ExperimentSpec) -> None:
        rule = spec.outcome
        reward = rule.by_name[world.reward]
        self._delay = world.delay
        self._window = rule.window
        self._is_ignored = rule.silence == "ignore"
        self._is_terminal = reward.terminal
        self._is_logistic = world.response == "logistic"
        self._limit = rule.window
        if rule.is_correcting:
            self._limit += math.inf if rule.late_window is None else rule.late_window
        self._weight = reward.weight
        self.failure = 0.0 if self._is_ignored else rule.default
        self.most = 1.0 if self._is_logistic else reward.bounds[1]
        self.in_time = 1.0 if self._is_ignored else _share(world.delay, self._limit)

    def expected(self, means: Floats) -> Floats:
        """Turn probabilities (logistic) or mean values into expected outcomes."""
        if self._is_logistic:
            return self.failure + (self.in_time * (self._weight - self.failure)) * means
        return (1.0 - self.in_time) * self.failure + (self.in_time * self._weight) * means

    def means(self, expected: Floats) -> Floats:
        """Undo ``expected``; 0 where nothing can come in time or events count as silence."""
        if self._is_logistic:
            scale, shift = self.in_time * (self._weight - self.failure), self.failure
        else:
            scale, shift = self.in_time * self._weight, (1.0 - self.in_time) * self.failure
        return (expected - shift) / scale if scale else np.zeros_like(expected)

    def waits(self, uniforms: Floats) -> Floats:
        """Give delays of events in seconds, shape (n,)."""
        if self._delay is None:
            return np.zeros(len(uniforms))
        mean, spread = self._delay.mean, self._delay.spread
        if spread is None:
            return mean * draws.as_exponentials(uniforms)
        logs = math.log(mean) - 0.5 * spread**2 + spread * draws.as_normals(uniforms)
        return draws.exponentials_of(logs)

    def hear(self, values: Floats, times: Floats, waits: Floats) -> Heard:
        """Give outcomes of events.

        Parameters
        ----------
        values : (n,)
            Of events; NaN: none.
        times, waits : (n,)
            Of the decisions, and how long after them the events are.
        """
        in_time = waits <= self._limit
        events = in_time & ~np.isnan(values)
        outcomes = np.where(events, self._weight * values, self.failure)
        if self._delay is None:
            return Heard(outcomes, times.copy())
        at_once = (events & (self._is_terminal | (waits > self._window))) | self._is_ignored
        due = times + np.where(at_once, waits, self._window)
        if self._is_ignored:
            outcomes[~in_time], due[~in_time] = np.nan, np.inf
        return Heard(outcomes, due)


def _share(delay: Delay | None, limit: float) -> float:
    """Give the probability that a delay ends within a limit."""
    if delay is None or limit == math.inf:
        return 1.0
    if delay.spread is None:
        return -math.expm1(-limit / delay.mean)
    middle = math.log(delay.mean) - 0.5 * delay.spread**2
    return float(ndtr((math.log(limit) - middle) / delay.spread))
