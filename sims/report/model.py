"""What a report says, without how it looks: sections of facts, tables and charts.

The page, the JSON and the Parquet file are made from this one thing, so they can not disagree.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from bandit.errors import InvalidInputError

Kind = Literal["lines", "stack", "points", "calibration", "histogram"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, layer or set of points.

    Parameters
    ----------
    name
        As shown.
    x
        Where; for ``points`` the place of the label, for ``histogram`` the left ends of the bars
        and the right end of the last.
    y
        How much.
    low, high
        Ends of intervals; empty: none.
    labels
        Names of the points; empty: none.

    Raises
    ------
    InvalidInputError
        If the lengths differ.
    """

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.y)
        if len(self.x) not in (n, n + 1):
            raise InvalidInputError(f"has {len(self.x)} places for {n} values", field="x")
        for name in ("low", "high", "labels"):
            if len(getattr(self, name)) not in (0, n):
                raise InvalidInputError(f"needs {n} entries, or none", field=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One plot.

    Parameters
    ----------
    name
        Short and unique in the report, such as ``regret``.
    title, note
        What it shows, and how to read it.
    kind
        Form of the plot.
    x_label, y_label
        What the axes are.
    series
        At least one.
    is_share
        Whether y is a share, shown as a percentage.
    is_log
        Whether x is logarithmic.
    """

    name: str
    title: str
    note: str
    kind: Kind
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    is_share: bool = False
    is_log: bool = False


class Fact(NamedTuple):
    """A number for everybody: what it is, the number, and one sentence about it."""

    name: str
    value: str
    meaning: str


class Rows(NamedTuple):
    """A table: a line of heads, and texts."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the report.

    Parameters
    ----------
    title, text
        Its heading, and a sentence or two.
    charts, tables
        What it shows.
    """

    title: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Rows, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole report.

    Parameters
    ----------
    title, subtitle
        What it is about.
    verdict
        ``passed``, ``stopped``, or empty where nothing was judged.
    headline
        The result in one sentence.
    facts
        Numbers that stand on top.
    sections
        The rest.
    made_with
        Names and values of all that it was made with.

    Raises
    ------
    InvalidInputError
        If two charts have one name.
    """

    title: str
    subtitle: str = ""
    verdict: Literal["", "passed", "stopped"] = ""
    headline: str = ""
    facts: tuple[Fact, ...] = ()
    sections: tuple[Section, ...] = ()
    made_with: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        names = [chart.name for chart in self.charts]
        if len(set(names)) < len(names):
            raise InvalidInputError("two charts have one name", field="sections")

    @property
    def charts(self) -> tuple[Chart, ...]:
        """All charts in order."""
        return tuple(chart for section in self.sections for chart in section.charts)
