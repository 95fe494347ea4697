"""Reading a log from a file, a batch at a time."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from bandit.decision import Group
from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec
from sims.log.record import Log, join
from sims.log.rows import Rows
from sims.log.tables import BATCH, Source

LEARNED = ("bandit", "random")
"""The groups whose actions were drawn, with the propensity that is logged."""


def batches(  # noqa: PLR0913  how a log is read
    path: Path,
    spec: ExperimentSpec,
    *,
    size: int = BATCH,
    columns: Mapping[str, str] | None = None,
    groups: Collection[str] = LEARNED,
    exclude: bool = False,
    contexts: bool = True,
) -> Iterator[Log]:
    """Read a log in batches of at most ``size`` rows.

    Parameters
    ----------
    path
        A Parquet file, or CSV if it ends in ``.csv`` or ``.csv.gz``.
    spec
        The experiment: its actions, its context and its outcome.
    columns
        Our name of a column to the file's, where they differ; see
        ``docs/reference/log-format.md``.
    groups
        Traffic groups to read, where the log has such a column; all others are set apart.
    exclude
        Leave bad rows out and count them, instead of refusing the log at the first.
    contexts
        Whether to read contexts, too.

    Yields
    ------
    Log
        Never without rows. What was left out since the one before is counted in it.

    Raises
    ------
    InvalidInputError
        Naming the file, and row and column where it is a cell that is wrong; or if no row is
        left at all.

    Notes
    -----
    Memory is that of a batch, and 8 bytes for every decision id.
    """
    source = Source(path)
    wanted = frozenset(_group(name) for name in groups)
    rows = Rows(source, spec, columns or {}, wanted, exclude=exclude, contexts=contexts)
    separated: Counter[str] = Counter()
    excluded: Counter[str] = Counter()
    held: Log | None = None
    read = 0
    for batch in source.batches(rows.columns, size):
        read += batch.size
        parts, sieve = rows.read(batch)
        separated += sieve.separated
        excluded += sieve.excluded
        if not len(parts["actions"]):
            continue
        if held is not None:
            yield held
        held = Log(
            **parts, size=spec.actions.size, separated=dict(separated), excluded=dict(excluded)
        )
        separated.clear()
        excluded.clear()
    if held is None:
        told = ", ".join(f"{n} {why}" for why, n in (separated + excluded).most_common(5))
        told = f"none of {read} rows is left: {told}" if read else "holds no rows"
        raise InvalidInputError(told, field=str(path))
    yield replace(
        held,
        separated=dict(Counter(held.separated) + separated),
        excluded=dict(Counter(held.excluded) + excluded),
    )


def read(  # noqa: PLR0913  as ``batches``
    path: Path,
    spec: ExperimentSpec,
    *,
    columns: Mapping[str, str] | None = None,
    groups: Collection[str] = LEARNED,
    exclude: bool = False,
    contexts: bool = True,
) -> Log:
    """Read a whole log into memory; as ``batches`` does.

    Raises
    ------
    InvalidInputError
        As ``batches``.
    """
    return join(
        list(
            batches(
                *(path, spec),
                columns=columns,
                groups=groups,
                exclude=exclude,
                contexts=contexts,
            )
        )
    )


def _group(name: str) -> Group:
    try:
        return Group[name.upper()]
    except KeyError:
        known = ", ".join(group.name.lower() for group in Group)
        raise InvalidInputError(f"{name[:64]!r} is none of {known}", field="groups") from None
