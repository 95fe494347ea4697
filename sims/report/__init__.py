"""Reports: one self-contained page, and the same as JSON and Parquet."""

from sims.report.files import to_json, to_table, write
from sims.report.findings import of_findings
from sims.report.model import Chart, Fact, Report, Rows, Section, Series
from sims.report.page import page

__all__ = [
    "Chart",
    "Fact",
    "Report",
    "Rows",
    "Section",
    "Series",
    "of_findings",
    "page",
    "to_json",
    "to_table",
    "write",
]
