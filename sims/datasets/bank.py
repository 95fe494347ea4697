"""Calls of a Portuguese bank, 2008 to 2010: who was called how and when, and who signed.

S. Moro, P. Cortez and P. Rita, A Data-Driven Approach to Predict the Success of Bank
Telemarketing, Decision Support Systems 62, 2014. The calls were not randomised: worlds can be
fitted to them, policies can not be evaluated on them.
"""

import csv
from pathlib import Path
from typing import NamedTuple

from bandit.errors import InvalidInputError
from sims.datasets import content

SHA256 = "74adfc578bf77a7ff4bb1ba4a9f8709d9e3c6907342959c2c8416847e0afb4d8"
CALLS, SIGNED = 41_188, 4_640
MONTHS = ("mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri")
CHANNELS = ("cellular", "telephone")
CATEGORIES = ("job", "marital", "education", "default", "housing", "loan", "poutcome")
NUMBERS = (
    "age", "campaign", "previous", "emp.var.rate", "cons.price.idx", "cons.conf.idx", "euribor3m",
    "nr.employed",
)  # fmt: skip


class Call(NamedTuple):
    """One call: context, how and when it was made, and whether the customer signed.

    ``duration`` is left out, since it is known only when the outcome is, and ``pdays``, whose
    999 for never is what ``previous`` = 0 tells.
    """

    context: dict[str, float | str]
    channel: str
    month: str
    weekday: str
    signed: bool


def load(path: Path) -> list[Call]:
    """Read the calls, compressed or not.

    Raises
    ------
    InvalidInputError
        If the file can not be read, or its content is not the published one.
    """
    _, data = content.read(path, "are not the bank's calls", {"calls": SHA256})
    calls = [_call(line) for line in csv.DictReader(data.decode().splitlines(), delimiter=";")]
    signed = sum(call.signed for call in calls)
    if (len(calls), signed) != (CALLS, SIGNED):
        raise InvalidInputError(f"{len(calls)} calls, {signed} signed", field=str(path))
    return calls


def _call(line: dict[str, str]) -> Call:
    return Call(
        {**{name: float(line[name]) for name in NUMBERS}, **{n: line[n] for n in CATEGORIES}},
        line["contact"],
        line["month"],
        line["day_of_week"],
        line["y"] == "yes",
    )
