"""How near chosen settings come to the best, measured on logs whose truth is known.

``python -m sims.ope.choices`` measures; ``--write docs/math/ope.md`` puts the table there, between
its markers.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress
from scipy import special

from bandit.kernels.compiling import Floats
from sims.log import Log
from sims.ope.coverage import written
from sims.ope.estimators import Weighed, weigh
from sims.ope.tuning import Candidate, candidates, slope

BEGIN, END = "<!-- settings: begin -->", "<!-- settings: end -->"
LOGS = 120
ESTIMATED = ("clipped_ips", "switch_dr", "dros")
TRAITS = 4


class Kind(NamedTuple):
    """One kind of log.

    Attributes
    ----------
    rows, actions
        How many.
    habit
        How far the logging policy is from uniform: weights grow with it.
    wrong
        How far the reward model is from the truth, in log-odds.
    """

    rows: int
    actions: int
    habit: float
    wrong: float


KINDS = {
    "a": Kind(rows=500, actions=5, habit=0.5, wrong=0.5),
    "b": Kind(rows=2_000, actions=5, habit=1.5, wrong=0.3),
    "c": Kind(rows=2_000, actions=20, habit=1.0, wrong=1.5),
}
"""Few rows and mild weights; heavy weights; many actions and a poor model."""


def _original(found: list[Candidate]) -> int:
    """Choose by SLOPE: intervals of two widths all meet (Su, Srinath & Krishnamurthy 2020)."""
    for i, one in enumerate(found):
        if any(abs(one.value - j.value) > 2.0 * (one.error + j.error) for j in found[:i]):
            return i - 1
    return len(found) - 1


def _by_squared_error(found: list[Candidate]) -> int:
    """Choose by the least estimated squared bias plus variance."""
    value = found[0].value
    return int(np.argmin([(one.value - value) ** 2 + one.error**2 for one in found]))


RULES: Mapping[str, Callable[[list[Candidate]], int]] = {
    "SLOPE++, 1 se": slope,
    "2 se": lambda found: slope(found, 2.0),
    "SLOPE, 1 se": _original,
    "squared bias plus variance": _by_squared_error,
    "no setting": lambda _: 0,
}
"""From candidates, the least biased first, to the place of the one that is taken."""


def logs(kind: Kind, count: int, seed: int = 1) -> tuple[list[Weighed], float]:
    """Draw logs of one kind; give also the true value of the policy that is evaluated."""
    fixed = np.random.default_rng([seed, 0])
    tastes, habits, errors = (fixed.standard_normal((TRAITS, kind.actions)) for _ in range(3))

    def customers(random: np.random.Generator, rows: int) -> tuple[Floats, ...]:
        x = random.standard_normal((rows, TRAITS))
        rates = special.expit(x @ tastes - 1.0)
        return x, rates, special.softmax(1.4 * (x @ tastes), axis=1)

    _, rates, target = customers(np.random.default_rng([seed, 1]), 200_000)
    value, found = float((rates * target).sum(axis=1).mean()), []
    for i in range(count):
        random = np.random.default_rng([seed, 2, i])
        x, rates, target = customers(random, kind.rows)
        logging = special.softmax(kind.habit * (x @ habits), axis=1)
        points, rows = random.random((kind.rows, 1)), np.arange(kind.rows)
        chosen = (logging.cumsum(axis=1) > points).argmax(axis=1)
        log = Log(
            actions=chosen,
            rewards=(random.random(kind.rows) < rates[rows, chosen]).astype(np.float64),
            propensities=logging[rows, chosen],
            size=kind.actions,
        )
        odds = special.logit(rates) + kind.wrong * (x @ errors + 1.0)
        found.append(weigh(log, target, special.expit(odds)))
    return found, value


def ratios(name: str, drawn: list[Weighed], value: float) -> Iterator[dict[str, float]]:
    """Give the error of every rule over that of the best fixed place; yields after every log."""
    errors: dict[str, list[float]] = {rule: [] for rule in RULES}
    fixed: list[list[float]] = []
    for weighed in drawn:
        found = candidates(name, weighed)
        squares = [(one.value - value) ** 2 for one in found]
        fixed.append(squares)
        for rule, choose in RULES.items():
            errors[rule].append(squares[choose(found)])
        width = max(map(len, fixed))  # equal quantiles of the weights are one setting
        every = [[*one, *[one[-1]] * (width - len(one))] for one in fixed]
        best = float(np.mean(every, axis=0).min())
        yield {rule: float(np.mean(each) / best) ** 0.5 for rule, each in errors.items()}


def main(
    count: Annotated[int, typer.Option("--logs", min=2, help="Of every kind.")] = LOGS,
    seed: Annotated[int, typer.Option(min=0, help="Names kinds and logs.")] = 1,
    write: Annotated[Path | None, typer.Option(help="Page whose table is replaced.")] = None,
) -> None:
    """Measure how near chosen settings come to the best fixed one."""
    lines = [f"| log, estimator | {' | '.join(RULES)} |", "|---" * (1 + len(RULES)) + "|"]
    with Progress(console=Console(stderr=True)) as progress:
        for label, kind in KINDS.items():
            drawn, value = logs(kind, count, seed)
            for name in ESTIMATED:
                told = progress.track(ratios(name, drawn, value), count, description=name)
                found = deque(told, maxlen=1)[0]
                shown = " | ".join(f"{ratio:.2f}" for ratio in found.values())
                lines.append(f"| {label}, {name} | {shown} |")
    text = f"{count} logs of each kind, seed {seed}.\n\n" + "\n".join(lines)
    if write is None:
        Console(soft_wrap=True).print(text, markup=False, highlight=False)
    else:
        write.write_text(written(write.read_text(), text, (BEGIN, END)))


if __name__ == "__main__":
    typer.run(main)
