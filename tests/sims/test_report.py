"""The report opens in a browser, by light, by night and on paper, and asks nobody for anything.

The browser is Debian's ``chromium``; as root it is installed where it is not there. Pictures are
kept for eyes: in ``build/screenshots``, or in the folder that BANDIT_SCREENSHOTS names.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit import spec_file
from bandit.errors import InvalidInputError
from sims import evaluate, report, rollout, worlds
from sims.gate import Findings, examine
from sims.log import read
from sims.ope.diagnostics import Limits
from sims.ope.targets import fixed, uniform
from sims.report import Chart, Fact, Report, Rows, Section, Series
from sims.report.drawing import draw

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "sims/examples/gate"
KEPT = Path(os.environ.get("BANDIT_SCREENSHOTS", ROOT / "build/screenshots"))
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--hide-scrollbars", "--no-default-browser-check"),
)
CHARTS = {
    *("regret-1", "reward-1", "allocation-1", "posterior-1", "calibration-1", "weights-1"),
    *("log-weights", "log-value"),
}


@pytest.fixture(scope="module")
def findings() -> Findings:
    spec = spec_file.parse((EXAMPLES / "stop-leak.toml").read_text(), "toml")
    spec = replace(spec, gate=replace(spec.gate, customers=1_000, replications=5))
    world = worlds.read(EXAMPLES / "stop-leak.world.toml")
    log = read(EXAMPLES / "stop-leak.log.csv", spec)
    return examine(spec, {"leak": world}, log, log_name="stop-leak.log.csv")


@pytest.fixture(scope="module")
def folder(findings: Findings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report")
    paths = report.write(report.of_findings(findings), made)
    assert [path.name for path in paths] == ["report.html", "report.json", "report.parquet"]
    return made


# --- in a browser -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
            subprocess.run(["apt-get", "-q", *command], capture_output=True, check=False)  # noqa: S607
        found = shutil.which("chromium")
    if found is None:
        pytest.skip("no browser: install Debian's package 'chromium' (apt-get install chromium)")
    return found


@pytest.fixture
def profile(tmp_path: Path) -> Iterator[str]:
    yield f"--user-data-dir={tmp_path / 'profile'}"
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)


def browse(chromium: str, *arguments: str) -> str:
    done = subprocess.run(
        [chromium, *FLAGS, *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout


def visit(chromium: str, profile: str, page: Path, log: Path) -> tuple[str, set[str]]:
    """Open a page; give what the browser made of it, and what the page asked for outside.

    The browser asks its maker for things by itself, without an initiator: these do not count.
    """
    seen = browse(
        chromium, profile, f"--log-net-log={log}", "--net-log-capture-mode=Everything",
        "--dump-dom", page.as_uri(),
    )  # fmt: skip
    events = json.loads(log.read_text())["events"]
    asked = {
        event["params"]["url"]
        for event in events
        if "url" in event.get("params", {})
        and event["params"].get("initiator", "not an origin") != "not an origin"
    }
    return seen, {url for url in asked if not url.startswith(("file:", "data:"))}


def test_the_browser_sees_every_plot_and_asks_nobody(
    chromium: str, profile: str, folder: Path, tmp_path: Path
):
    seen, asked = visit(chromium, profile, folder / "report.html", tmp_path / "net.json")
    found = r'<figure id="chart-([\w-]+)">\s*<h3>.*?</h3>.*?(<svg.*?</svg>)'
    plots = re.findall(found, seen, re.DOTALL)
    assert {name for name, _ in plots} == CHARTS
    for name, svg in plots:
        assert svg.count("<path") + svg.count("<use") > 3, name
        assert "<text" in svg, name
    assert asked == set()


def test_a_page_that_asks_outside_would_be_found(chromium: str, profile: str, tmp_path: Path):
    page = tmp_path / "outside.html"
    page.write_text('<img src="http://127.0.0.1:9/pixel.png">')
    _, asked = visit(chromium, profile, page, tmp_path / "net.json")
    assert asked == {"http://127.0.0.1:9/pixel.png"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_by_light_and_by_night(
    chromium: str, profile: str, folder: Path, scheme: str
):
    KEPT.mkdir(parents=True, exist_ok=True)
    picture = KEPT / f"report-{scheme}.png"
    preferred = {"light": "1", "dark": "0"}[scheme]
    browse(
        chromium, profile, f"--blink-settings=preferredColorScheme={preferred}",
        "--window-size=1000,6000", f"--screenshot={picture}", (folder / "report.html").as_uri(),
    )  # fmt: skip
    from PIL import Image

    with Image.open(picture) as image:
        shades = image.convert("L").resize((100, 600))
        histogram = shades.histogram()
    dark, bright = sum(histogram[:64]), sum(histogram[192:])
    assert dark > 20 * max(bright, 1) or bright > 5 * max(dark, 1)
    assert (dark > bright) is (scheme == "dark")
    assert len([n for n in histogram if n]) > 20  # not an empty page


def test_it_prints(chromium: str, profile: str, folder: Path):
    KEPT.mkdir(parents=True, exist_ok=True)
    paper = KEPT / "report-print.pdf"
    browse(
        chromium, profile, "--no-pdf-header-footer", f"--print-to-pdf={paper}",
        (folder / "report.html").as_uri(),
    )  # fmt: skip
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", content)) <= 12


def rollout_report() -> Report:
    of = worlds.preset("stationary")
    kinds = {"ts": "thompson", "ucb": "linucb"}
    return report.of_rollout(rollout(of.spec, of.world, kinds, customers=300, replications=3))


def evaluation_report() -> Report:
    spec = spec_file.parse((EXAMPLES / "stop-leak.toml").read_text(), "toml")
    log = read(EXAMPLES / "stop-leak.log.csv", spec)
    size = spec.actions.size
    found = {
        "uniform": evaluate(log, uniform, estimators=["ips", "snips"], replicates=40),
        "first": evaluate(
            log, fixed(0), estimators=["ips"], limits=Limits(effective_rows=1e6), replicates=0
        ),
    }
    belief = report.Belief(np.linspace(0.0, 1.0, size), np.full(size, 0.1))
    return report.of_evaluations(spec, found, beliefs={"first": belief}, notes=["a note"])


OTHERS = {
    "rollout": (
        rollout_report,
        {"regret", "reward", "lift", "best", "allocation-1", "allocation-2", "detection"},
    ),
    "evaluation": (
        evaluation_report,
        {"values", "estimates-1", "estimates-2", "weights-1", "weights-2", "posterior-2"}
        | {"calibration"},
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_reports_of_rollouts_and_evaluations(
    chromium: str, profile: str, tmp_path: Path, name: str
):
    make, charts = OTHERS[name]
    made = make()
    report.write(made, tmp_path)
    seen, asked = visit(chromium, profile, tmp_path / "report.html", tmp_path / "net.json")
    plots = dict(re.findall(r'<figure id="chart-([\w-]+)">.*?(<svg.*?</svg>)', seen, re.DOTALL))
    assert set(plots) == charts
    assert all(svg.count("<path") + svg.count("<use") > 3 for svg in plots.values())
    assert asked == set()
    assert set(pq.read_table(tmp_path / "report.parquet")["chart"].to_pylist()) == charts
    KEPT.mkdir(parents=True, exist_ok=True)
    browse(
        chromium, profile, "--window-size=1000,5000", f"--screenshot={KEPT / name}.png",
        (tmp_path / "report.html").as_uri(),
    )  # fmt: skip


def test_a_withheld_estimate_is_a_reason_and_no_point():
    made = evaluation_report()
    assert made.facts[1].value == "withheld"
    text = " ".join(section.text for section in made.sections)
    assert "at least 1000000 are needed" in text
    first = next(chart for chart in made.charts if chart.name == "estimates-2")
    assert {label for one in first.series for label in one.labels} == {"logged"}


# --- the page itself --------------------------------------------------------------------


class Outside(HTMLParser):
    """Collects what a page would fetch, run or refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "embed", "img", "image"):
            self.found.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "data", "action", "xlink:href") and not (
                value or ""
            ).startswith(("#", "data:")):
                self.found.append(f"{tag} {name}={value}")
            if name.startswith("on"):
                self.found.append(f"{tag} {name}")


def test_nothing_comes_from_outside(folder: Path):
    text = (folder / "report.html").read_text()
    parser = Outside()
    parser.feed(text)
    assert parser.found == []
    assert len(parser.ids) == len(set(parser.ids))
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "//" not in re.sub(r"<[^>]*>", "", text).replace("://", "")
    assert "default-src 'none'" in text
    for reference in re.findall(r'(?:href="|url\()#([\w-]+)', text):
        assert reference in parser.ids


def test_colours_are_the_pages_own(folder: Path):
    svgs = re.findall(r"<svg.*?</svg>", (folder / "report.html").read_text(), re.DOTALL)
    for svg in svgs:
        assert "var(--s1)" in svg
        assert not re.findall(r"(?:fill|stroke): #(?!fff)\w+", svg)
        assert "font-family" not in svg


def test_the_top_says_what_happened(folder: Path):
    text = (folder / "report.html").read_text()
    top = text[: text.index("Checks</h2>")]
    for words in ("Stopped", "landing_visits", "Lift once learned", "Customers to plan for"):
        assert words in top


# --- the same as data -------------------------------------------------------------------


def test_json_and_parquet_say_the_same(folder: Path, findings: Findings):
    data = json.loads((folder / "report.json").read_text())
    assert data["verdict"] == "stopped"
    table = pq.read_table(folder / "report.parquet")
    assert set(table["chart"].to_pylist()) == CHARTS
    points = [
        (chart["name"], series["name"], y)
        for section in data["sections"]
        for chart in section["charts"]
        for series in chart["series"]
        for y in series["y"]
    ]
    rows = [(r["chart"], r["series"], r["y"]) for r in table.to_pylist()]
    assert rows == points
    assert findings.verdict.spec_hash in json.dumps(data["made_with"])


@given(st.text(max_size=40))
def test_texts_can_not_break_the_page(text: str):
    made = Report(
        title=text,
        headline=text,
        facts=(Fact(text, text, text),),
        sections=(Section(title=text, text=text, tables=(Rows((text,), ((text,),)),)),),
    )
    parser = Outside()
    parser.feed(report.page(made))
    assert parser.found == []


@pytest.mark.parametrize("kind", ["lines", "stack", "points", "calibration", "histogram"])
def test_a_plot_of_one_point_can_be_drawn(kind: str):
    x = (1.0, 2.0) if kind == "histogram" else (1.0,)
    labels = ("one",) if kind == "points" else ()
    one = Series(name="a", x=x, y=(0.5,), low=(0.4,), high=(0.6,), labels=labels)
    chart = Chart(name="c", title="t", note="n", kind=kind, x_label="x", y_label="y", series=(one,))  # type: ignore[arg-type]
    assert draw(chart).startswith("<svg")


def test_two_charts_of_one_name_are_refused():
    one = Series(name="a", x=(1.0,), y=(1.0,))
    chart = Chart(
        name="c", title="t", note="n", kind="lines", x_label="x", y_label="y", series=(one,)
    )
    with pytest.raises(InvalidInputError, match="one name"):
        Report(title="x", sections=(Section(title="s", charts=(chart, chart)),))
