"""A decision checks what the log will rely on."""

import math
from uuid import UUID

import pytest

from bandit.decision import Decision, Group, Reason
from bandit.errors import InvalidInputError


def decision(**parts: object) -> Decision:
    whole = {
        "decision_id": UUID(int=1),
        "action": 0,
        "propensity": 0.5,
        "group": Group.BANDIT,
        "reason": Reason.POLICY,
        "snapshot_version": 0,
    }
    return Decision(**{**whole, **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.0000001, math.inf, -math.inf])
def test_an_impossible_propensity_is_refused(propensity: float):
    with pytest.raises(InvalidInputError, match="propensity"):
        decision(propensity=propensity)


@pytest.mark.parametrize("propensity", [5e-324, 0.5, 1.0, math.nan])
def test_a_possible_propensity_is_kept(propensity: float):
    assert decision(propensity=propensity).propensity == pytest.approx(propensity, nan_ok=True)


@pytest.mark.parametrize("parts", [{"action": -1}, {"snapshot_version": -1}])
def test_a_negative_index_is_refused(parts: dict[str, object]):
    with pytest.raises(InvalidInputError, match="negative"):
        decision(**parts)


def test_only_chosen_actions_are_learned_from():
    learned = [reason for reason in Reason if decision(reason=reason).is_learned_from]
    assert learned == [Reason.POLICY, Reason.RANDOM_GROUP]


def test_fallback_reasons_are_those_that_overrule_the_group():
    assert [reason for reason in Reason if reason.is_fallback] == [
        Reason.NO_ELIGIBLE_ACTION,
        Reason.PAUSED,
        Reason.STALE_SNAPSHOT,
    ]


def test_stored_numbers_never_change():
    assert {g.name: g.value for g in Group} == {
        "BANDIT": 1,
        "RANDOM": 2,
        "BASELINE": 3,
        "NO_CONTACT": 4,
    }
    assert [r.value for r in Reason] == [1, 2, 3, 4, 5, 6, 7]
