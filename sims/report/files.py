"""A report in a folder: ``report.html``, and the same as ``report.json`` and ``report.parquet``."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bandit.errors import InvalidInputError
from sims.report.model import Report
from sims.report.page import page

SCHEMA = pa.schema(
    [
        ("section", pa.string()),
        ("chart", pa.string()),
        ("kind", pa.string()),
        ("series", pa.string()),
        ("label", pa.string()),
        ("x", pa.float64()),
        ("y", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)


def write(report: Report, folder: Path) -> list[Path]:
    """Write a report's three files; give their paths.

    Raises
    ------
    InvalidInputError
        If the folder can not be written.
    """
    paths = [folder / f"report.{ending}" for ending in ("html", "json", "parquet")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths[0].write_text(page(report), encoding="utf-8")
        paths[1].write_text(to_json(report) + "\n", encoding="utf-8")
        pq.write_table(to_table(report), paths[2])
    except OSError as error:
        raise InvalidInputError(f"can not be written: {error}", field=str(folder)) from None
    return paths


def to_json(report: Report) -> str:
    """Give a report as JSON; what is no number is null."""
    return json.dumps(_finite(asdict(report)), ensure_ascii=False, allow_nan=False, indent=1)


def to_table(report: Report) -> pa.Table:
    """Give the points of all charts, a row each."""
    rows = []
    for section in report.sections:
        for chart in section.charts:
            for one in chart.series:
                for i, y in enumerate(one.y):
                    rows.append(
                        {
                            "section": section.title,
                            "chart": chart.name,
                            "kind": chart.kind,
                            "series": one.name,
                            "label": one.labels[i] if one.labels else None,
                            "x": one.x[i],
                            "y": y,
                            "low": one.low[i] if one.low else None,
                            "high": one.high[i] if one.high else None,
                        }
                    )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value
