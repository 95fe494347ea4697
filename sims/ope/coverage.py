"""How often every interval holds the truth, measured on logs whose truth is known.

``python -m sims.ope.coverage`` measures; ``--write docs/reference/coverage.md`` puts the table
there, between its markers.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from sims.ope import intervals
from sims.ope.adaptive import (
    ImportanceBernstein,
    ImportanceBetting,
    running_spreads,
    stabilised,
)
from sims.ope.bootstrap import KINDS, Bootstrap
from sims.ope.estimators import Terms, Weighed, terms_of
from sims.ope.intervals import Interval, Moments
from sims.ope.sequences import (
    BetaBinomial,
    Betting,
    Hoeffding,
    MixtureBernstein,
    PlugInBernstein,
    Sequence,
)
from sims.ope.trials import WORLDS, Trial

LEVEL = 0.95
LOOKS = 10
REPLICATES = 400
BEGIN, END = "<!-- coverage: begin -->", "<!-- coverage: end -->"

Looks = Iterator[tuple[str, str, list[Interval | None]]]
"""(estimate, interval, ends at every look); None: refused; one look: for a fixed time."""


class Row(NamedTuple):
    """What was counted.

    Attributes
    ----------
    log, estimate, interval
        Where and what.
    replications
        Number of logs.
    held
        In how many the interval after all rows held the truth.
    held_always
        In how many it did so at every look; -1 if it was looked at once.
    refused
        In how many there was no interval (all rows equal): not held.
    width
        Mean width after all rows.
    """

    log: str
    estimate: str
    interval: str
    replications: int
    held: int
    held_always: int
    refused: int
    width: float

    @property
    def coverage(self) -> float:
        """Share of logs in which the interval held the truth."""
        return self.held / self.replications

    @property
    def error(self) -> float:
        """Binomial standard error of the coverage."""
        return math.sqrt(self.coverage * (1.0 - self.coverage) / self.replications)


def part_of(weighed: Weighed, start: int, stop: int) -> Weighed:
    """Give some rows."""
    assert weighed.fitted is not None  # noqa: S101
    assert weighed.direct is not None  # noqa: S101
    return Weighed(
        rewards=weighed.rewards[start:stop],
        weights=weighed.weights[start:stop],
        fitted=weighed.fitted[start:stop],
        direct=weighed.direct[start:stop],
    )


def _edges(n: int) -> list[int]:
    return [n * i // LOOKS for i in range(LOOKS + 1)]


def _try(make: Callable[[], Interval]) -> Interval | None:
    """Give an interval, or none where it is refused."""
    try:
        return make()
    except InvalidInputError:
        return None


def _by_formula(trial: Trial) -> Looks:
    """Student's interval, at every look too, and those of Bernstein and of Clopper & Pearson."""
    edges = _edges(len(trial.weighed))
    for name in ("ips", "snips", "dr"):
        moments, looks = Moments(), []
        for start, stop in itertools.pairwise(edges):
            moments.add(terms_of(name, part_of(trial.weighed, start, stop)))
            looks.append(_try(partial(intervals.student, moments, LEVEL)))
        yield name, "student", looks
    moments = Moments.of(terms_of("ips", trial.weighed))
    most = trial.largest_weight
    yield "ips", "bernstein", [intervals.empirical_bernstein(moments, (0.0, most), LEVEL)]
    if set(np.unique(trial.weighed.weights).tolist()) <= {0.0, most}:  # not scores: no selection
        yield "ips", "clopper_pearson", [intervals.clopper_pearson(moments, most, LEVEL)]


def _by_customer(trial: Trial) -> Looks:
    if len(np.unique(trial.customers)) == len(trial.customers):
        return
    terms = terms_of("snips", trial.weighed)
    moments = Moments.of(terms, trial.customers)
    yield "snips", "student by customer", [_try(partial(intervals.student, moments, LEVEL))]
    drawn = Bootstrap(["snips"], seed=1, replicates=REPLICATES)
    drawn.add({"snips": terms}, trial.customers)
    for kind in KINDS:
        found = _try(partial(drawn.interval, "snips", LEVEL, kind))
        yield "snips", f"{kind} by customer", [found]


def _by_bootstrap(trial: Trial, seed: int) -> Looks:
    names = ("ips", "snips", "dr")
    drawn = Bootstrap(names, seed=seed, replicates=REPLICATES)
    drawn.add({name: terms_of(name, trial.weighed) for name in names})
    for name in names:
        for kind in KINDS:
            yield name, kind, [_try(partial(drawn.interval, name, LEVEL, kind))]


def _looked_at(sequence: Sequence, values: Floats) -> list[Interval | None]:
    found: list[Interval | None] = []
    edges = _edges(len(values))
    for start, stop in itertools.pairwise(edges):
        sequence.add(values[start:stop])
        found.append(_try(partial(getattr, sequence, "interval")))
    return found


def _by_sequence(trial: Trial) -> Looks:
    most = trial.largest_weight
    scores = {
        "ips": (terms_of("ips", trial.weighed).numerators, (0.0, most)),
        "dr": (terms_of("dr", trial.weighed).numerators, (-most, 1.0 + most)),
    }
    for name, (values, bounds) in scores.items():
        for sequence in (
            Betting(bounds, level=LEVEL),
            PlugInBernstein(bounds, level=LEVEL),
            MixtureBernstein(bounds, level=LEVEL),
            MixtureBernstein(bounds, level=LEVEL, boundary="stitched"),
            Hoeffding(bounds, level=LEVEL),
        )[: 5 if name == "ips" else 1]:
            yield name, sequence.kind, _looked_at(sequence, values)
    for label, weighted in (
        ("importance_bernstein", ImportanceBernstein(level=LEVEL)),
        ("importance_betting", ImportanceBetting(level=LEVEL)),
        ("importance_betting, bounded", ImportanceBetting(level=LEVEL, largest_weight=most)),
    ):
        looks: list[Interval | None] = []
        edges = _edges(len(trial.weighed))
        for start, stop in itertools.pairwise(edges):
            rows = part_of(trial.weighed, start, stop)
            weighted.add(rows.weights, rows.rewards)
            looks.append(_try(partial(getattr, weighted, "interval")))
        yield "ips", label, looks


def _on_the_log(trial: Trial) -> Looks:
    """Take the mean reward of the log itself, where one policy logged it."""
    if math.isnan(trial.logged):
        return
    rewards = trial.weighed.rewards
    if len(np.unique(trial.customers)) < len(rewards):
        return  # rows of one customer resemble each other: not for these
    moments = Moments.of(Terms(rewards, np.ones(len(rewards))))
    yield "logged", "clopper_pearson", [intervals.clopper_pearson(moments, level=LEVEL)]
    yield "logged", "beta_binomial_sequence", _looked_at(BetaBinomial(level=LEVEL), rewards)


def _under_learning(trial: Trial) -> Looks:
    if trial.spreads is None:
        return
    for name in ("ips", "dr"):
        scores = terms_of(name, trial.weighed).numerators
        yield name, "stabilised", [_try(partial(stabilised, scores, trial.spreads, LEVEL))]
        past = running_spreads(scores)
        yield name, "stabilised, running", [_try(partial(stabilised, scores, past, LEVEL))]
    matched = (trial.weighed.weights > 0).astype(np.float64)
    if matched.all():
        return
    terms = Terms(matched * trial.weighed.rewards, matched)
    yield "matched", "student", [_try(partial(intervals.student, Moments.of(terms), LEVEL))]
    drawn = Bootstrap(["matched"], seed=1, replicates=REPLICATES)
    drawn.add({"matched": terms})
    for kind in KINDS:
        yield "matched", kind, [_try(partial(drawn.interval, "matched", LEVEL, kind))]


def every_interval(trial: Trial, seed: int) -> Looks:
    """Give every interval of one log."""
    yield from _by_formula(trial)
    yield from _by_bootstrap(trial, seed)
    yield from _by_customer(trial)
    yield from _by_sequence(trial)
    yield from _on_the_log(trial)
    yield from _under_learning(trial)


def measure(
    world: str, replications: int, seed: int = 1, *, rows: int | None = None
) -> Iterator[list[Row]]:
    """Count how often intervals hold the truth of one kind of log; yields after every log.

    Parameters
    ----------
    world
        One of ``trials.WORLDS``.
    replications
        Number of logs: log i is named by (seed, world, i).
    rows
        Of a log; None: as ``WORLDS`` says.

    Raises
    ------
    InvalidInputError
        For an unknown kind of log or no replications.
    """
    if world not in WORLDS:
        raise InvalidInputError(f"{world!r} is not one of {', '.join(WORLDS)}", field="world")
    if replications < 1:
        raise InvalidInputError(f"must be at least 1, got {replications}", field="replications")
    draw, usual = WORLDS[world]
    counts: dict[tuple[str, str], list[float]] = {}
    for i in range(replications):
        name = np.random.SeedSequence((seed, list(WORLDS).index(world), i))
        trial = draw(np.random.default_rng(name), rows or usual)
        for estimate, interval, looks in every_interval(trial, seed=i):
            truth = trial.logged if estimate == "logged" else trial.truth
            count = counts.setdefault((estimate, interval), [0.0, 0.0, 0.0, 0.0, 0.0])
            held = [look is not None and look.covers(truth) for look in looks]
            last = looks[-1]
            count[0] += held[-1]
            count[1] += all(held)
            count[2] += last is None
            count[3] += 0.0 if last is None else last.width
            count[4] = max(count[4], len(looks))
        yield [
            Row(
                world,
                *key,
                replications=i + 1,
                held=int(held),
                held_always=int(always) if most_looks > 1 else -1,
                refused=int(refused),
                width=width / max(i + 1 - refused, 1),
            )
            for key, (held, always, refused, width, most_looks) in counts.items()
        ]


def table(rows: list[Row]) -> str:
    """Give the counts as Markdown."""
    lines = [
        "| log | estimate | interval | holds the truth | at every look | mean width |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        always = "" if row.held_always < 0 else f"{row.held_always / row.replications:.1%}"
        refused = f" ({row.refused} refused)" if row.refused else ""
        lines.append(
            f"| {row.log} | {row.estimate} | {row.interval} | {row.coverage:.1%} +- "
            f"{row.error:.1%}{refused} | {always} | {row.width:.4f} |"
        )
    return "\n".join(lines)


def written(page: str, text: str, markers: tuple[str, str] = (BEGIN, END)) -> str:
    """Give a page with the text between its markers.

    Raises
    ------
    InvalidInputError
        If the page has no markers.
    """
    before, begin, rest = page.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not (begin and end):
        raise InvalidInputError(f"has no {' and '.join(markers)}", field="page")
    return f"{before}{begin}\n{text}\n{end}{after}"


def main(
    replications: Annotated[int, typer.Option(help="Logs of every kind.")] = 1000,
    seed: Annotated[int, typer.Option(help="Names the logs.")] = 1,
    world: Annotated[list[str] | None, typer.Option(help="Kind of log; all if left out.")] = None,
    write: Annotated[Path | None, typer.Option(help="Page whose table is replaced.")] = None,
) -> None:
    """Measure how often every interval holds the truth."""
    console = Console(stderr=True)
    names = world or list(WORLDS)
    rows: list[Row] = []
    with Progress(console=console) as progress:
        for name in names:
            counted = measure(name, replications, seed)
            rows += deque(progress.track(counted, replications, description=name), maxlen=1)[0]
    text = (
        f"{replications} logs of each kind, seed {seed}, level {LEVEL:.0%}, {LOOKS} looks, "
        f"{REPLICATES} bootstrap replicates.\n\n{table(rows)}"
    )
    if write is None:
        Console(soft_wrap=True).print(text, markup=False, highlight=False)
    else:
        write.write_text(written(write.read_text(), text))


if __name__ == "__main__":
    typer.run(main)
