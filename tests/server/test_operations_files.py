"""The dashboard and the alert rules load, and speak of metrics that a busy server shows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from server.pb import bandit_pb2 as pb
from tests.server.harness import Clock, Peer, decide_request, eventually
from tests.server.scrape import Samples, scrape, value

FOLDER = Path(__file__).parents[2] / "docs/operations"
GIVEN_BY_PROMETHEUS = {"instance", "job"}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    assert len({group["name"] for group in groups}) == len(groups)
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana-dashboard.json").read_text())
    return found


def queries() -> list[str]:
    """Give every query of both files; the dashboard's variables are put in as Grafana would."""
    told = [rule["expr"] for rule in alerts()]
    for panel in dashboard()["panels"]:
        told += [target["expr"] for target in panel.get("targets", ())]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            told.append(re.fullmatch(r"label_values\((.+), \w+\)", variable["query"]["query"])[1])
    return [q.replace("$__rate_interval", "5m") for q in told]


def parts(expression: promql.Expr) -> Iterator[Any]:
    """Give an expression and all expressions in it."""
    yield expression
    for name in ("expr", "lhs", "rhs", "param", "vector_selector", "args"):
        inner = getattr(expression, name, None)
        for one in inner if isinstance(inner, list) else [inner]:
            if isinstance(one, promql.Expr):
                yield from parts(one)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Scrape a server that has done everything that is measured."""
    with Peer(tmp_path_factory.mktemp("busy"), clock=Clock(), metrics_port=0) as peer:
        assert peer.clock is not None
        name = peer.create("busy", groups={"random": 0.5})
        requests = [decide_request(name, f"r{i}") for i in range(150)]
        batch = pb.BatchDecideRequest(requests=requests)
        answers = peer.decisions.BatchDecide(batch).decisions
        one = peer.decide(name, "single")
        peer.reward(name, "e1", one.decision_id)
        peer.reward(name, "e2", answers[0].decision_id, name="buy")
        peer.clock.advance(4_000)
        peer.learn(name)
        peer.server.sample_ratios.look(peer.live(name))
        eventually(lambda: value(scrape(peer), "bandit_rewards_total") == 2)
        return scrape(peer)


@pytest.mark.parametrize("query", sorted(set(queries())))
def test_a_query_speaks_of_what_is_there(query: str, busy: Samples):
    labels: dict[str, set[str]] = {}
    values: dict[tuple[str, str], set[str]] = {}
    for name, found in busy:
        labels.setdefault(name, set()).update(label for label, _ in found)
        for label, text in found:
            values.setdefault((name, label), set()).add(text)
    expression = promql.parse(query)
    selectors = [p for p in parts(expression) if isinstance(p, promql.VectorSelector)]
    assert selectors, query
    assert set(re.findall(r"\b(?:bandit|process)_\w+", query)) == {s.name for s in selectors}
    for selector in selectors:
        assert selector.name in labels, f"no metric {selector.name}"
        known = labels[selector.name] | GIVEN_BY_PROMETHEUS
        for matcher in selector.matchers.matchers:
            assert matcher.name in known, f"{selector.name} has no label {matcher.name}"
    used = {label for s in selectors for label in labels[s.name]} | GIVEN_BY_PROMETHEUS
    for grouped in re.findall(r"\b(?:by|on) ?\(([^)]*)\)", query):
        assert {label.strip() for label in grouped.split(",")} <= used, query


def test_alerts_are_complete():
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names)
    for rule in alerts():
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"page", "warn"}
        assert re.fullmatch(r"\d+[smh]", rule["for"])
        shown = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        kept = re.search(r"by \(([^)]*)\)", rule["expr"])
        if kept is not None:
            assert shown <= {label.strip() for label in kept[1].split(",")}


def test_words_that_alerts_and_panels_choose_by_exist():
    """A value that no server ever says would make an alert that never fires."""
    from bandit.decision import Group, Reason
    from server.catalogue import State
    from server.status import CODES

    words = {
        "code": {code.name for code in CODES.values()},
        "reason": {reason.name.lower() for reason in Reason},
        "group": {group.name.lower() for group in Group},
        "state": {state.name.lower() for state in State},
        "snapshot": {"newest", "previous", "recent"},
        "method": {f"{s.name}/{m.name}" for s in pb.DESCRIPTOR.services_by_name.values()
                   for m in s.methods},
    }  # fmt: skip
    for query in queries():
        for label, text in re.findall(r'(\w+)=~?"([^"$]+)"', query):
            assert set(text.split("|")) <= words[label], query


def test_panels_do_not_overlap_and_have_their_own_ids():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_a_query_of_a_metric_that_is_gone_is_caught(busy: Samples):
    with pytest.raises(AssertionError, match="no metric"):
        test_a_query_speaks_of_what_is_there("rate(bandit_nothing_total[5m])", busy)
    with pytest.raises(AssertionError, match="no label"):
        test_a_query_speaks_of_what_is_there('bandit_decisions_total{customer="x"}', busy)
    with pytest.raises(ValueError, match="unclosed"):
        test_a_query_speaks_of_what_is_there("rate(bandit_ready[5m]", busy)
