"""Traffic groups: shares of points, and customers who stay where they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.decision import Group
from bandit.errors import InvalidInputError
from bandit.groups import Groups

POINTS = st.integers(0, 2**32 - 1)
HALVES = st.tuples(st.floats(0, 0.5), st.floats(0, 0.25), st.floats(0, 0.25))
ENDS = {
    Group.RANDOM: (0, 2**30),
    Group.NO_CONTACT: (2**31, 2**31 + 2**29),
    Group.BASELINE: (2**32 - 2**28, 2**32),
}


def naive(shares: tuple[float, float, float], point: int) -> Group:
    """Lay the groups end to end, so that one that grows pushes the next along."""
    edge = 0.0
    for group, share in zip((Group.RANDOM, Group.NO_CONTACT, Group.BASELINE), shares, strict=True):
        edge += share * 2**32
        if point < edge:
            return group
    return Group.BANDIT


def ours(shares: tuple[float, float, float], point: int) -> Group:
    random, no_contact, baseline = shares
    return Groups(random=random, no_contact=no_contact, baseline=baseline).group(point)


@given(shares=HALVES, more=HALVES, point=POINTS)
def test_growing_shares_take_customers_from_the_bandit_only(
    shares: tuple[float, float, float], more: tuple[float, float, float], point: int
):
    grown = tuple(max(a, b) for a, b in zip(shares, more, strict=True))
    before, after = ours(shares, point), ours(grown, point)
    assert before in (after, Group.BANDIT)


def test_the_naive_layout_would_move_customers():
    point = int(0.15 * 2**32)
    assert naive((0.1, 0.1, 0.0), point) is Group.NO_CONTACT
    assert naive((0.2, 0.1, 0.0), point) is Group.RANDOM


@pytest.mark.parametrize("group", ENDS)
def test_a_share_is_a_range_of_points(group: Group):
    groups = Groups(random=0.25, no_contact=0.125, baseline=0.0625)
    first, end = ENDS[group]
    inside = [groups.group(p) for p in (first, (first + end) // 2, end - 1)]
    outside = [groups.group(p % 2**32) for p in (first - 1, end)]
    assert inside == [group] * 3
    assert group not in outside


@pytest.mark.parametrize(
    ("groups", "group"),
    [
        (Groups(random=0), Group.BANDIT),
        (Groups(random=1), Group.RANDOM),
        (Groups(random=0, baseline=1), Group.BASELINE),
    ],
)
@given(point=POINTS)
def test_a_share_of_all_is_all(groups: Groups, group: Group, point: int):
    assert groups.group(point) is group


@given(shares=HALVES)
def test_the_bandit_gets_the_rest(shares: tuple[float, float, float]):
    random, no_contact, baseline = shares
    found = Groups(random=random, no_contact=no_contact, baseline=baseline).shares
    assert set(found) == set(Group)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found[Group.BANDIT] >= 0.0


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ({"random": -0.1}, "random"),
        ({"random": float("nan")}, "random"),
        ({"baseline": 1.1}, "baseline"),
        ({"no_contact": 2.0}, "no_contact"),
        ({"random": 0.6, "baseline": 0.6}, "more than 1"),
        ({"random": 0.6, "no_contact": 0.1}, "keeps its half"),
        ({"random": 0.1, "no_contact": 0.3, "baseline": 0.3}, "keeps its half"),
    ],
)
def test_shares_that_do_not_fit_are_refused(shares: dict[str, float], said: str):
    with pytest.raises(InvalidInputError, match=said):
        Groups(**shares)
