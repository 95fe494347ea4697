"""Charts as SVG whose colours are the page's: light, dark and in print.

matplotlib draws; colours are placeholders that become CSS variables, fonts are the page's own.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy import special

from sims.report.model import Chart, Series

COLOURS = 8
_SERIES = [f"#fe00{i:02x}" for i in range(1, COLOURS + 1)]
_INK, _SOFT, _GRID, _PAPER = "#fe0100", "#fe0200", "#fe0300", "#fe0400"
_VARIABLES = {
    **{colour: f"var(--s{i})" for i, colour in enumerate(_SERIES, 1)},
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _GRID: "var(--grid)",
    _PAPER: "var(--paper)",
}
_WIDE, _HIGH = 7.4, 3.5
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.0,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _SOFT,
    "axes.linewidth": 0.8,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _SOFT,
    "ytick.labelcolor": _SOFT,
    "text.color": _INK,
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "lines.linewidth": 1.8,
}


def draw(chart: Chart) -> str:
    """Give a chart as an ``<svg>`` element."""
    rows = max((len(s.labels) for s in chart.series), default=0)
    per_row = 0.22 + 0.08 * len(chart.series)
    height = max(2.2, 0.9 + per_row * rows) if chart.kind == "points" else _HIGH
    with mpl.rc_context({**_STYLE, "svg.hashsalt": chart.name}):
        figure = Figure(figsize=(_WIDE, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        axes.tick_params(length=0)
        _DRAWN[chart.kind](axes, chart)
        _finish(axes, chart)
        written = io.StringIO()
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return _inline(written.getvalue(), chart)


def _finish(axes: Axes, chart: Chart) -> None:
    if chart.is_log:
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if high < 50 * low:  # powers of ten alone would be one tick or two
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    elif chart.kind in ("lines", "stack"):
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.margins(x=0.01)
    if chart.kind == "histogram":  # the tail is what matters
        axes.set_yscale("log")
        shown = [y for one in chart.series for y in one.y if y > 0.0]
        if shown:
            axes.set_ylim(min(min(shown) / 2, 0.005), 1.0 if chart.is_share else 2 * max(shown))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if chart.is_share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g}%"))
    axes.grid(visible=True, axis="x" if chart.kind == "points" else "y")
    axes.set_axisbelow(True)


def _lines(axes: Axes, chart: Chart) -> None:
    for i, one in enumerate(chart.series):
        colour = _SERIES[i % COLOURS]
        style = ("-", "--", "-.", ":")[i % 4]
        axes.plot(one.x, one.y, style, color=colour, label=one.name)
        if one.low:
            axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.18, linewidth=0)


def _stack(axes: Axes, chart: Chart) -> None:
    layers = [one.y for one in chart.series]
    colours = [_SERIES[i % COLOURS] for i in range(len(layers))]
    names = [one.name for one in chart.series]
    axes.stackplot(
        chart.series[0].x, *layers, labels=names, colors=colours,
        edgecolor=_PAPER, linewidth=0.7,
    )  # fmt: skip
    axes.set_ylim(0, 1)


def _points(axes: Axes, chart: Chart) -> None:
    used: dict[float, list[int]] = {}  # the series that have something to show at a place
    for i, one in enumerate(chart.series):
        for x, y in zip(one.x, one.y, strict=True):
            if np.isfinite(y):
                used.setdefault(x, []).append(i)
    for i, one in enumerate(chart.series):
        colour = _SERIES[i % COLOURS]
        lanes = [used.get(x, [i]) for x in one.x]
        shifts = [mine.index(i) - (len(mine) - 1) / 2 if i in mine else 0.0 for mine in lanes]
        places = np.array(one.x) + 0.24 * np.array(shifts)
        if one.low:
            axes.hlines(places, one.low, one.high, color=colour, linewidth=1.6)
        axes.plot(one.y, places, "os^D"[i % 4], color=colour, markersize=5, label=one.name)
    first = chart.series[0]
    axes.set_yticks(first.x, labels=first.labels)
    axes.set_ylim(len(first.labels) - 0.5, -0.5)


def _calibration(axes: Axes, chart: Chart) -> None:
    top = max((v for one in chart.series for v in (*one.x, *one.y, *one.high)), default=1.0)
    axes.plot([0, top], [0, top], "--", color=_SOFT, linewidth=1.0)
    for i, one in enumerate(chart.series):
        colour = _SERIES[i % COLOURS]
        if one.low:
            axes.vlines(one.x, one.low, one.high, color=colour, linewidth=1.6)
        axes.plot(one.x, one.y, "o", color=colour, markersize=5, label=one.name)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0%}"))


def _histogram(axes: Axes, chart: Chart) -> None:
    for i, one in enumerate(chart.series):
        edges = np.array(one.x)
        axes.bar(
            edges[:-1], one.y, np.diff(edges), align="edge", color=_SERIES[i % COLOURS],
            edgecolor=_PAPER, linewidth=0.7, alpha=0.9 if len(chart.series) == 1 else 0.6,
            label=one.name,
        )  # fmt: skip


_DRAWN: dict[str, Callable[[Axes, Chart], None]] = {
    "lines": _lines,
    "stack": _stack,
    "points": _points,
    "calibration": _calibration,
    "histogram": _histogram,
}


def _inline(text: str, chart: Chart) -> str:
    """Make a file's SVG fit for a page: no metadata, no addresses, the page's colours and font."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?)\swidth="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[^"]*"', r"\1", svg, count=1)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda m: m[0] if m[1] in used else "", svg)
    for found in sorted(used - set(_hexes()), key=len, reverse=True):
        svg = re.sub(rf"(?<=[\"#]){re.escape(found)}(?=[\")])", f"{chart.name}-{found}", svg)
    svg = re.sub(r"font: (\d[\w.]*) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _hexes() -> list[str]:
    return [colour.removeprefix("#") for colour in _VARIABLES]


def spread_of(name: str, x: np.ndarray, values: np.ndarray) -> Series:
    """Give a line with its 95 % interval over replications, ``values`` of shape (r, points)."""
    n = len(values)
    mean = values.mean(axis=0)
    half = np.zeros_like(mean)
    if n > 1:
        half = special.stdtrit(n - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return Series(
        name=name,
        x=tuple(x.tolist()),
        y=tuple(mean.tolist()),
        low=tuple((mean - half).tolist()),
        high=tuple((mean + half).tolist()),
    )
