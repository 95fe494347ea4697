"""Tables for people: experiments, reports and answers."""

import math
import os
import sys
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

from bandit.decision import Group
from server.client import Answer
from server.pb import bandit_pb2 as pb

PIPED_WIDTH = 200
"""Columns where output is no terminal: wide enough that nothing is wrapped."""


def _width() -> int | None:
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH


console = Console(width=_width())
progress_console = Console(stderr=True)
"""Progress is seen where output goes into a file, and does not go into it."""
is_unseen = not progress_console.is_terminal
"""Whether a bar that would be gone at its end need not be drawn at all."""


def table(title: str, columns: Sequence[str], *, left: int = 1) -> Table:
    """Begin a table whose first columns are text and the rest numbers.

    Where the terminal is too narrow cells are wrapped; nothing is cut off.
    """
    made = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < left else "right", overflow="fold")
    return made


def number(value: float, digits: int = 4) -> str:
    """Show a number, or a dash for none."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def percent(value: float) -> str:
    """Show a ratio less one as a signed percentage, or a dash for none."""
    return "-" if math.isnan(value) else f"{100 * value:+.1f} %"


def moment(stamp: Timestamp) -> str:
    """Show an instant in UTC, to the second."""
    return stamp.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")


def interval(ends: Sequence[float], *, as_percent: bool = False) -> str:
    """Show an interval, or a dash for none."""
    if not ends:
        return "-"
    if as_percent:
        return f"[{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}] %"
    return f"[{number(ends[0])}, {number(ends[1])}]"


def experiments(found: Sequence[pb.Experiment]) -> Table:
    """Show experiments, a line each."""
    made = table(
        "Experiments",
        ["name", "state", "combinations", "log entries", "snapshot", "learned"],
        left=2,
    )
    for one in found:
        actions = one.spec.actions
        size = len(actions.variants) * len(actions.channels) * max(len(actions.slots), 1)
        made.add_row(
            one.spec.name,
            pb.State.Name(one.state).removeprefix("STATE_").lower(),
            str(size),
            str(one.log_length),
            str(one.snapshot.version),
            str(one.snapshot.outcomes),
        )
    return made


def report(found: pb.GetReportResponse, *, most: int = 10) -> list[Table]:
    """Show a report: groups, lift, actions."""
    return [_groups(found), _lifts(found), _actions(found, most)]


def _groups(found: pb.GetReportResponse) -> Table:
    name = found.experiment.spec.name
    columns = ["group", "decisions", "contacts", "outcomes", "mean", "95 % interval"]
    made = table(f"Traffic and reward of {name!r}", columns)
    for line in found.groups:
        made.add_row(
            _group(line.group),
            str(line.decisions),
            str(line.contacts),
            str(line.outcomes),
            number(line.mean if line.HasField("mean") else math.nan),
            interval(line.interval),
        )
    notes = [f"{found.reward_events} reward events, {found.late_events} late"]
    if found.corrections:
        notes.append(f"{found.corrections} corrections")
    if found.exposures:
        notes.append(f"{found.exposures} exposures")
    notes.append(f"{found.open_decisions} decisions open")
    if found.HasField("sample_ratio_p_value"):
        p = found.sample_ratio_p_value
        verdict = "as declared" if p >= 0.001 else "NOT as declared: look for lost traffic"
        notes.append(f"group sizes {verdict} (p = {p:.3f})")
    made.caption = "; ".join(notes)
    return made


def _lifts(found: pb.GetReportResponse) -> Table:
    columns = ["against", "difference", "95 % interval", "lift", "95 % interval"]
    made = table("Lift of the group bandit", columns)
    for line in found.lifts:
        relative = line.relative if line.HasField("relative") else math.nan
        made.add_row(
            _group(line.against),
            number(line.difference),
            interval(line.difference_interval),
            percent(relative),
            interval(line.relative_interval, as_percent=True),
        )
    return made


def _actions(found: pb.GetReportResponse, most: int) -> Table:
    columns = ["variant", "channel", "slot", "bandit", "random", "outcomes", "mean outcome"]
    made = table("Actions", columns, left=3)
    for line in found.actions[:most]:
        made.add_row(
            line.action.variant,
            line.action.channel,
            line.action.slot,
            str(line.bandit_decisions),
            str(line.random_decisions),
            str(line.outcomes),
            number(line.mean if line.HasField("mean") else math.nan),
        )
    if len(found.actions) > most:
        made.caption = f"{len(found.actions) - most} more"
    return made


def answer(found: Answer) -> Table:
    """Show one decision."""
    made = table("Decision", ["what", "is"], left=2)
    made.add_row("decision id", found.decision_id)
    sent = f"{found.variant} by {found.channel}, {found.slot}" if found.variant else "nothing"
    made.add_row("send", sent)
    if found.send_at is not None:
        made.add_row("at", found.send_at.isoformat())
    made.add_row("propensity", f"{found.propensity:.6f}")
    if found.group is not None and found.reason is not None:
        made.add_row("group", found.group.name.lower())
        made.add_row("reason", found.reason.name.lower())
    made.add_row("snapshot", str(found.snapshot_version))
    if found.is_repeated:
        made.add_row("", "given before, to the same request id")
    return made


def _group(value: int) -> str:
    return Group(value).name.lower()


def audit_entries(found: Sequence[pb.AuditEntry]) -> Table:
    """Show administrative changes, a line each."""
    columns = ["place", "at (UTC)", "who", "action", "what", "reason"]
    made = table("Audit log", columns, left=len(columns))
    made.columns[3].no_wrap = True  # a word: others have spaces to be wrapped at
    for one in found:
        made.add_row(str(one.sequence), moment(one.at), one.who, one.action, one.what, one.reason)
    return made
