"""``banditctl evaluate``: what policies would have earned on a log."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bandit.decision import Group
from bandit.errors import InvalidInputError, UnavailableError
from bandit.experiment import Experiment
from bandit.groups import Groups
from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from server.commands import options, show
from server.commands.replay_log import left_out
from sims.log import Log, batches, taken
from sims.log.rows import declared_range
from sims.log.tables import Source
from sims.ope.balancing import Balancer
from sims.ope.candidates import (
    BELIEVING,
    Open,
    belief_of,
    candidate,
    learned,
    parts,
    policy_of,
)
from sims.ope.diagnostics import Diagnostics, Limits
from sims.ope.estimate import Estimate
from sims.ope.evaluate import Evaluation
from sims.ope.evaluate import evaluate as estimate
from sims.ope.intervals import Interval
from sims.ope.models import model_of
from sims.ope.plan import Plan

ENDINGS = (".json", ".csv", ".parquet")
BELIEF_ROWS = 4_096
"""Customers of the log whose mean belief is drawn."""

SECRET = bytes(16)
"""Names draws of joint beliefs; nobody is decided for."""


def evaluate(  # noqa: PLR0913  one per option
    log: Annotated[Path, typer.Argument(help="Parquet or CSV; from 'banditctl export'.")],
    spec: Annotated[Path, typer.Option(help="The specification, .toml, .yaml or .json.")],
    policy: Annotated[
        list[str] | None,
        typer.Option(help="uniform, baseline, prior, learned or an action; may be repeated."),
    ] = None,
    estimator: Annotated[
        list[str] | None, typer.Option(help="Only these; may be repeated.")
    ] = None,
    learn: Annotated[float, typer.Option(help="Share of the log that is learned from.")] = 0.5,
    replicates: Annotated[int, typer.Option(help="Of the bootstrap; 0: none.")] = 1_000,
    level: Annotated[float, typer.Option(help="Of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of folds, samples and replicates.")] = 0,
    column: options.Columns = None,
    group: options.LogGroups = None,
    exclude: options.Exclude = False,  # noqa: FBT002
    interval: Annotated[
        list[str] | None,
        typer.Option(
            help="student, bca, stabilised or betting; may be repeated (those that hold for "
            "this log)."
        ),
    ] = None,
    adaptive: Annotated[
        bool | None,
        typer.Option(
            "--adaptive/--not-adaptive",
            help="Whether the policy that logged learned on the way (found from the log).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="A folder for the report; or every estimate as .json, .csv, .parquet."),
    ] = None,
) -> None:
    """Estimate what policies would have earned on a log, or say why that can not be said.

    Ends with status 1 if the log is refused, or any estimate is withheld.
    """
    _check(learn, out)
    made = options.read_spec(spec)
    source = Source(log)
    names = options.read_columns(column)
    chosen = policy or ["uniform", *(["baseline"] if made.baseline else []), "learned"]
    reading: dict[str, Any] = {"columns": names, "exclude": exclude}
    if group:
        reading["groups"] = group
    with _progress() as progress:
        tell = _teller(progress)
        facts = _look(source, made, reading, names, tell)
        asked = _Asked(chosen, facts, learn)
        plan = Plan(
            estimators=estimator or None,
            replicates=replicates,
            level=level,
            seed=seed,
            groups=facts.groups,
            limits=Limits(all_eligible=facts.all_eligible),
            models={"auto": model_of(made)},
            balancing=Balancer() if "balanced" in (estimator or ()) else None,
            intervals=interval or None,
            bounds=declared_range(made.outcome),
            logging_is_adaptive=adaptive,
        )
        found, beliefs = _evaluate(asked, source, made, reading, plan, tell)
        tell("intervals", facts.rows)
    _show(found, made, facts, asked)
    if out is not None:
        _write(out, found, made)
        if not out.suffix:
            _report(out, found, beliefs, made, facts, asked, source)
    _conclude(found, log)


def _check(learn: float, out: Path | None) -> None:
    if not 0.0 < learn < 1.0:
        raise InvalidInputError(f"must be between 0 and 1, got {learn}", field="learn")
    if out is not None and out.suffix not in ("", *ENDINGS):
        raise InvalidInputError(
            "needs the ending .json, .csv or .parquet; or none, for a folder", field=str(out)
        )


def _conclude(found: Mapping[str, Evaluation], log: Path) -> None:
    """Refuse if any estimate is withheld; else say what was evaluated."""
    withheld = [
        (name, one.name, one.withheld)
        for name, evaluation in found.items()
        for one in evaluation.estimates.values()
        if one.withheld is not None
    ]
    if withheld:
        name, which, why = withheld[0]
        raise InvalidInputError(
            f"{len(withheld)} estimates are withheld; {which} of {name}: {why}", field=str(log)
        )
    total = sum(len(one.estimates) for one in found.values())
    rows = next(iter(found.values())).diagnostics.rows
    typer.echo(f"evaluated: {len(found)} policies, {total} estimates on {rows} rows")


class Facts(NamedTuple):
    """What a first look at a log tells.

    Attributes
    ----------
    rows, last
        That are used, and the last of them in the file.
    counts
        Rows that are not used, by why.
    groups
        Declared shares of bandit and random, where the log can be held against them.
    all_eligible
        Whether no row may have had rules of its own.
    """

    rows: int
    last: int
    counts: Mapping[str, int]
    groups: Groups | None
    all_eligible: bool


class _Asked(NamedTuple):
    """Policies that are asked for, and how much of the log is learned from."""

    names: list[str]
    facts: Facts
    share: float

    @property
    def last_learned(self) -> int:
        """Last row of the file that is learned from; 0 if nothing is learned."""
        return int(self.facts.last * self.share) if "learned" in self.names else 0


Belief = tuple[Floats, Floats]
"""Mean score and spread of every action."""

Tell = Callable[[str, int], None]


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[rows]}"),
        TimeElapsedColumn(),
        console=show.progress_console,
        transient=True,
        disable=show.is_unseen,
    )


def _teller(progress: Progress) -> Tell:
    task = progress.add_task("reading", total=None, rows="")

    def tell(stage: str, rows: int) -> None:
        progress.update(task, description=stage, rows=f"{rows:,} rows")

    return tell


def _look(
    source: Source, spec: ExperimentSpec, reading: dict[str, Any], names: dict[str, str], tell: Tell
) -> Facts:
    """Read the log once: refuse it before anything is computed, and count."""
    counts: dict[str, int] = {}
    rows = last = 0
    has_groups = has_customers = False
    for log in batches(source.path, spec, **reading):
        for why, n in (*log.separated.items(), *log.excluded.items()):
            counts[why] = counts.get(why, 0) + n
        rows += len(log)
        last = int(log.places[-1]) if log.places is not None else rows
        has_groups, has_customers = log.groups is not None, log.customers is not None
        tell("checking the log", rows)
    drawn = spec.groups.random + spec.groups.shares[Group.BANDIT]
    groups = None
    if (
        has_groups
        and has_customers
        and "groups" not in reading
        and 0.0 < spec.groups.random < drawn
    ):
        groups = Groups(random=spec.groups.random / drawn)
    excluded = "exclusions" not in names.values() and "exclusions" in source.types
    own_rules = excluded and any(
        batch.columns["exclusions"].null_count < batch.size
        for batch in source.batches(["exclusions"])
    )
    return Facts(rows, last, counts, groups, not own_rules and bool(spec.actions.mask.all()))


def _evaluate(  # noqa: PLR0913  what is evaluated, and how
    asked: _Asked,
    source: Source,
    spec: ExperimentSpec,
    reading: dict[str, Any],
    plan: Plan,
    tell: Tell,
) -> tuple[dict[str, Evaluation], dict[str, Belief]]:
    def opened() -> Iterator[Log]:
        return batches(source.path, spec, **reading)

    first, rest = parts(opened, asked.last_learned)
    experiment = Experiment(spec, secret=SECRET)
    found: dict[str, Evaluation] = {}
    beliefs: dict[str, Belief] = {}
    some = next(iter(rest()))
    for name in dict.fromkeys(asked.names):
        tell(f"{name}: learning" if name == "learned" else name, 0)
        if name in BELIEVING:
            heard = _heard(first, name, tell) if name == "learned" else None
            posterior = learned(experiment, heard)
            target = policy_of(experiment, posterior)
            few = taken(some, slice(0, BELIEF_ROWS))
            beliefs[name] = belief_of(experiment, posterior, few)
        else:
            target = candidate(name, experiment)
        found[name] = estimate(
            rest, target, plan, progress=lambda stage, n, name=name: tell(f"{name}: {stage}", n)
        )
    return found, beliefs


def _heard(first: Open, name: str, tell: Tell) -> Iterator[Log]:
    rows = 0
    for log in first():
        rows += len(log)
        yield log
        tell(f"{name}: learning", rows)


def _show(
    found: Mapping[str, Evaluation], spec: ExperimentSpec, facts: Facts, asked: _Asked
) -> None:
    show.console.print(left_out(facts.counts))
    if asked.last_learned:
        show.console.print(
            f"learned from rows 1 to {asked.last_learned} of the file; "
            "every policy is evaluated on the rows behind"
        )
    for name, evaluation in found.items():
        columns = ["estimate", "reward", "interval", "effective rows", "set to"]
        made = show.table(f"{name}, experiment {spec.name!r}", columns)
        for one in evaluation.estimates.values():
            if one.value is None:
                made.add_row(one.name, "withheld", "", _rows(one.effective_rows), "")
                continue
            interval = "\n".join(map(_interval, _shown(one))) or "-"
            setting = "" if one.setting is None else f"{one.setting:.3g}"
            setting = "0: the model alone" if one.setting == 0.0 else setting
            value = show.number(one.value)
            made.add_row(one.name, value, interval, _rows(one.effective_rows), setting)
        made.caption = _diagnosed(evaluation.diagnostics)
        show.console.print(made)
        reasons = {one.withheld: None for one in evaluation.estimates.values() if one.withheld}
        for why in reasons:
            which = [o.name for o in evaluation.estimates.values() if o.withheld == why]
            show.console.print(f"withheld ({', '.join(which)}): {why}")
    first = next(iter(found.values()))
    show.console.print(first.why, markup=False)
    cautions = {
        one.caution: None for e in found.values() for one in e.estimates.values() if one.caution
    }
    for caution in cautions:
        names = {
            o.name for e in found.values() for o in e.estimates.values() if o.caution == caution
        }
        show.console.print(f"caution ({', '.join(sorted(names))}): {caution}", markup=False)


def _shown(one: Estimate) -> list[Interval]:
    """Give the intervals to show: of Student's and the bootstrap's the better one alone."""
    kinds = {i.kind for i in one.intervals}
    return [i for i in one.intervals if i.kind != "student" or "bca" not in kinds]


def _interval(one: Interval) -> str:
    return f"{show.interval(one[:2])} {one.kind.replace('_', ' ')}"


def _rows(effective: float | None) -> str:
    return "" if effective is None else f"{effective:.0f}"


def _diagnosed(found: Diagnostics) -> str:
    parts_of = [
        f"{found.rows} rows, worth {found.effective_rows:.0f}",
        f"largest weight {found.largest_weight:.3g}, {found.largest_share:.1%} of all",
        f"mean weight {found.mean_weight:.3f}, must be 1 (p = {found.mean_weight_p:.2g})",
        f"{found.unsupported:.1%} never logged",
    ]
    if not math.isnan(found.calibration_p):
        parts_of.append(f"propensities are calibrated with p = {found.calibration_p:.2g}")
    if found.sample_ratio_p is not None and not math.isnan(found.sample_ratio_p):
        parts_of.append(f"groups are as declared with p = {found.sample_ratio_p:.2g}")
    return "; ".join(parts_of)


def _write(out: Path, found: Mapping[str, Evaluation], spec: ExperimentSpec) -> None:
    tables = []
    for name, evaluation in found.items():
        table = evaluation.table()
        tables.append(table.add_column(0, "policy", pa.array([name] * len(table), pa.string())))
    whole = pa.concat_tables(tables)
    try:
        if not out.suffix:
            out.mkdir(parents=True, exist_ok=True)
            pq.write_table(whole, out / "estimates.parquet")
        elif out.suffix == ".parquet":
            pq.write_table(whole, out)
        elif out.suffix == ".csv":
            pa_csv.write_csv(whole, out)
        else:
            told = {"experiment": spec.name, "estimates": whole.to_pylist()}
            out.write_text(json.dumps(told, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UnavailableError(f"can not be written: {error}", field=str(out)) from None


def _report(  # noqa: PLR0913  what a report is made of
    out: Path,
    found: Mapping[str, Evaluation],
    beliefs: Mapping[str, Belief],
    spec: ExperimentSpec,
    facts: Facts,
    asked: _Asked,
    source: Source,
) -> None:
    """Write the page, and the same as JSON and Parquet."""
    from sims import report  # matplotlib takes a second that no other run needs

    notes = [left_out(facts.counts)]
    if asked.last_learned:
        notes.append(
            f"the policy was learned from rows 1 to {asked.last_learned:,} of the file, and every "
            "policy is evaluated on the rows behind"
        )
    made = report.of_evaluations(
        spec,
        found,
        beliefs={name: report.Belief(*belief) for name, belief in beliefs.items()},
        notes=notes,
        made_with=(("Log", source.path.name), ("Specification", spec.name)),
    )
    paths = report.write(made, out)
    typer.echo(f"written: {', '.join(path.name for path in paths)}, estimates.parquet in {out}")
