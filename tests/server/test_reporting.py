"""The report against a hand count."""

import math
import statistics

import pytest
from scipy import stats

from server.pb import bandit_pb2 as pb
from tests.server.harness import Peer, decide_request, reward_request

GROUPS = {"random": 0.3, "baseline": 0.25, "no_contact": 0.15}
SHARES = {
    pb.GROUP_BANDIT: 0.3,
    pb.GROUP_RANDOM: 0.3,
    pb.GROUP_BASELINE: 0.25,
    pb.GROUP_NO_CONTACT: 0.15,
}
CUSTOMERS = 300
Z = 1.959963984540054


class Campaign:
    """Customers of all groups, some of whom buy or click: everything is known."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.name = peer.create(
            "counted", groups=GROUPS, baseline={"variant": "long", "channel": "push"}
        )
        requests = [decide_request(self.name, f"r{i}") for i in range(CUSTOMERS)]
        requests += [decide_request(self.name, f"again {i}", customer_id="c0") for i in range(9)]
        message = pb.BatchDecideRequest(requests=requests)
        self.decisions = list(peer.decisions.BatchDecide(message).decisions)
        self.outcomes: dict[str, float] = {}
        events = []
        for i, decision in enumerate(self.decisions):
            self.outcomes[decision.decision_id] = 0.0
            if i % 3 == 0:
                events.append(reward_request(self.name, f"c{i}", decision.decision_id))
                self.outcomes[decision.decision_id] += 1.0
            if i % 5 == 0:
                value = float(i % 100)
                told = {"name": "buy", "value": value}
                events.append(reward_request(self.name, f"b{i}", decision.decision_id, **told))
                self.outcomes[decision.decision_id] += 0.5 * value
        self.events = len(events)
        peer.decisions.BatchRecordRewards(pb.BatchRecordRewardsRequest(events=events))

    def close(self) -> pb.GetReportResponse:
        self.peer.clock.advance(3_601)
        self.peer.learn(self.name)
        return self.peer.report(self.name)

    def of(self, group: int) -> list[float]:
        return [self.outcomes[d.decision_id] for d in self.decisions if d.group == group]

    def halfwidth(self, group: int) -> float:
        """Give half the 95 % interval of a group's mean, from how its customers differ.

        All customers decided once, but for the one that came nine times again.
        """
        values = self.of(group)
        mean = statistics.fmean(values)
        again = {d.decision_id for d in self.decisions[CUSTOMERS:] if d.group == group}
        off = [
            self.outcomes[d.decision_id] - mean
            for d in self.decisions[:CUSTOMERS]
            if d.group == group
        ]
        if again:
            off.append(sum(self.outcomes[one] - mean for one in again))
        variance = sum(x * x for x in off) * len(off) / (len(off) - 1) / len(values) ** 2
        return Z * math.sqrt(variance)


@pytest.fixture
def campaign(still: Peer) -> Campaign:
    return Campaign(still)


def test_groups_are_counted(campaign: Campaign):
    report = campaign.close()
    assert [line.group for line in report.groups] == list(SHARES)
    for line in report.groups:
        values = campaign.of(line.group)
        contacts = 0 if line.group == pb.GROUP_NO_CONTACT else len(values)
        assert (line.decisions, line.contacts, line.outcomes) == (
            len(values),
            contacts,
            len(values),
        )
        mean, half = statistics.fmean(values), campaign.halfwidth(line.group)
        assert line.mean == pytest.approx(mean, rel=1e-12)
        assert list(line.interval) == pytest.approx([mean - half, mean + half], rel=1e-9)


def test_lifts_are_against_every_other_group(campaign: Campaign):
    report = campaign.close()
    mine = campaign.of(pb.GROUP_BANDIT)
    assert [line.against for line in report.lifts] == [g for g in SHARES if g != pb.GROUP_BANDIT]
    for line in report.lifts:
        other = campaign.of(line.against)
        difference = statistics.fmean(mine) - statistics.fmean(other)
        half = math.hypot(*(campaign.halfwidth(g) for g in (line.group, line.against)))
        assert line.group == pb.GROUP_BANDIT
        assert line.difference == pytest.approx(difference, rel=1e-9)
        assert list(line.difference_interval) == pytest.approx(
            [difference - half, difference + half], rel=1e-9
        )
        assert line.relative == pytest.approx(
            statistics.fmean(mine) / statistics.fmean(other) - 1.0, rel=1e-9
        )
        assert line.relative_interval[0] < line.relative < line.relative_interval[1]


def test_actions_count_what_was_chosen_for_bandit_and_random(campaign: Campaign):
    report = campaign.close()
    counts: dict[int, list[int]] = {}
    values: dict[int, list[float]] = {}
    for decision in campaign.decisions:
        if decision.group in (pb.GROUP_BANDIT, pb.GROUP_RANDOM):
            count = counts.setdefault(decision.action.index, [0, 0])
            count[decision.group - pb.GROUP_BANDIT] += 1
            outcome = campaign.outcomes[decision.decision_id]
            values.setdefault(decision.action.index, []).append(outcome)
    found = {a.action.index: [a.bandit_decisions, a.random_decisions] for a in report.actions}
    assert found == counts
    shown = [a.bandit_decisions for a in report.actions]
    assert shown == sorted(shown, reverse=True)
    for line in report.actions:
        assert line.outcomes == len(values[line.action.index])
        assert line.mean == pytest.approx(statistics.fmean(values[line.action.index]))


def test_events_and_open_decisions(campaign: Campaign):
    before = campaign.peer.report(campaign.name)
    closed = sum(i % 5 == 0 for i in range(len(campaign.decisions)))  # by a purchase
    assert before.reward_events == campaign.events
    assert before.open_decisions == len(campaign.decisions) - closed
    assert sum(line.outcomes for line in before.groups) == closed
    campaign.close()
    for i in (1, 2, 4):
        campaign.peer.reward(campaign.name, f"late {i}", campaign.decisions[i].decision_id)
    after = campaign.peer.report(campaign.name)
    assert (after.late_events, after.open_decisions) == (3, 0)
    assert after.reward_events == campaign.events + 3
    assert after.experiment.log_length == 2 * len(campaign.decisions) + after.reward_events


def test_the_split_is_tested_on_customers_not_on_decisions(campaign: Campaign):
    report = campaign.close()
    of_customers = campaign.decisions[:CUSTOMERS]
    [usual] = {d.group for d in campaign.decisions[CUSTOMERS:]}
    observed = [sum(d.group == g for d in of_customers) + (g == usual) for g in SHARES]
    expected = [share * (CUSTOMERS + 1) for share in SHARES.values()]
    p = stats.chisquare(observed, expected).pvalue
    assert report.sample_ratio_p_value == pytest.approx(p, rel=1e-9)
    assert p > 1e-6  # the secret is drawn: a false alarm once in a million runs


def test_fallbacks_count_as_decisions_and_not_as_outcomes(campaign: Campaign):
    peer, name = campaign.peer, campaign.name
    peer.experiments.PauseExperiment(pb.PauseExperimentRequest(name=name))
    paused = [peer.decide(name, f"paused {i}") for i in range(20)]
    told = {"name": "buy", "value": 100.0}
    for decision in paused:
        peer.reward(name, f"p{decision.sequence}", decision.decision_id, **told)
    fallbacks = [d for d in paused if d.reason == pb.REASON_PAUSED]
    assert len(fallbacks) > 5
    report = campaign.close()
    for line in report.groups:
        more = sum(d.group == line.group for d in paused)
        assert line.decisions == len(campaign.of(line.group)) + more
        if line.group != pb.GROUP_NO_CONTACT:
            assert line.outcomes == len(campaign.of(line.group))
    chosen = sum(a.bandit_decisions + a.random_decisions for a in report.actions)
    assert chosen == len(campaign.of(pb.GROUP_BANDIT)) + len(campaign.of(pb.GROUP_RANDOM))


def test_a_report_on_nothing(still: Peer):
    report = still.report(still.create("empty", start=False, groups={"random": 0.25}))
    assert [(line.group, line.decisions) for line in report.groups] == [
        (pb.GROUP_BANDIT, 0),
        (pb.GROUP_RANDOM, 0),
    ]
    assert not report.groups[0].HasField("mean")
    assert not report.HasField("sample_ratio_p_value")
    assert len(report.lifts) == len(report.actions) == report.open_decisions == 0


def test_a_lift_over_nothing_is_not_set(still: Peer):
    name = still.create("fruitless", groups={"random": 0.5})
    message = pb.BatchDecideRequest(requests=[decide_request(name, f"r{i}") for i in range(50)])
    still.decisions.BatchDecide(message)
    still.clock.advance(3_601)
    still.learn(name)
    [lift] = still.report(name).lifts
    assert lift.difference == 0.0
    assert not lift.HasField("relative")
    assert len(lift.relative_interval) == 0


def test_a_long_report_shows_the_most_used_actions(still: Peer):
    variants = [{"name": f"v{i}"} for i in range(120)]
    actions = {"variants": variants, "channels": [{"name": "email"}]}
    policy = {"kind": "uniform"}
    name = still.create(
        "wide",
        actions=actions,
        policy=policy,
        groups={"random": 0.5},
        fallback={"variant": "v0", "channel": "email"},
    )
    message = pb.BatchDecideRequest(requests=[decide_request(name, f"r{i}") for i in range(900)])
    decisions = still.decisions.BatchDecide(message).decisions
    report = still.report(name)
    assert len({d.action.index for d in decisions}) > 100 == len(report.actions)
