"""Reports: one self-contained page, and the same as JSON and Parquet."""

from sims.report.evaluations import Belief, of_evaluations
from sims.report.files import to_json, to_table, write
from sims.report.findings import of_findings
from sims.report.model import Chart, Fact, Report, Rows, Section, Series
from sims.report.page import page
from sims.report.rollouts import of_rollout

__all__ = [
    "Belief",
    "Chart",
    "Fact",
    "Report",
    "Rows",
    "Section",
    "Series",
    "of_evaluations",
    "of_findings",
    "of_rollout",
    "page",
    "to_json",
    "to_table",
    "write",
]
