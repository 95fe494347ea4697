"""The action space: indices that never move, and rules that take actions away."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit.actions import FACTORS, ActionSpace, Exclusion, Level
from bandit.errors import InvalidInputError, NotFoundError

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))


def space(v: int, c: int, s: int, exclusions: tuple[Exclusion, ...] = ()) -> ActionSpace:
    variants, channels, slots = (
        tuple(Level(name=f"{letter}{i}") for i in range(n))
        for letter, n in zip("vcs", (v, c, s), strict=True)
    )
    return ActionSpace(variants=variants, channels=channels, slots=slots, exclusions=exclusions)


@st.composite
def rules(draw: st.DrawFn, sizes: tuple[int, int, int]) -> tuple[Exclusion, ...]:
    found = []
    for _ in range(draw(st.integers(0, 4))):
        names = {
            factor: draw(
                st.none() | st.integers(0, n - 1).map(lambda i, letter=factor[0]: f"{letter}{i}")
            )
            for factor, n in zip(FACTORS, sizes, strict=True)
        }
        if any(names.values()):
            found.append(Exclusion(**names, reason=f"rule {len(found)}"))
    return tuple(found)


def matches(rule: Exclusion, levels: tuple[Level, Level, Level]) -> bool:
    wanted = (rule.variant, rule.channel, rule.slot)
    return all(w is None or w == level.name for w, level in zip(wanted, levels, strict=True))


@given(sizes=SIZES)
def test_an_index_and_its_levels_are_one_to_one(sizes: tuple[int, int, int]):
    actions = space(*sizes)
    for i, names in enumerate(product(*([level.name for level in f] for f in actions.factors))):
        assert actions.index(*names) == i
        assert tuple(level.name for level in actions.levels(i)) == names
    assert actions.table.shape == (actions.size, 3)


@given(data=st.data(), sizes=SIZES)
def test_exclusions_remove_what_they_match_and_move_no_index(
    data: st.DataObject, sizes: tuple[int, int, int]
):
    plain, asked = space(*sizes), data.draw(rules(sizes))
    eligible = plain.eligible(asked)
    for i in range(plain.size):
        hits = [rule.reason for rule in asked if matches(rule, plain.levels(i))]
        assert eligible[i] == (not hits)
        assert [r.reason for r in plain.removed(asked) if r.action == i] == hits[:1]


def test_the_spaces_own_rules_come_before_the_requests():
    own, asked = Exclusion(variant="v0", reason="own"), Exclusion(channel="c0", reason="asked")
    actions = space(2, 2, 1, (own,))
    np.testing.assert_array_equal(actions.mask, [False, False, True, True])
    np.testing.assert_array_equal(actions.eligible((asked,)), [False, False, False, True])
    assert [(r.action, r.reason) for r in actions.removed((asked,))] == [
        (0, "own"),
        (1, "own"),
        (2, "asked"),
    ]


def test_a_request_may_leave_nothing():
    everything = tuple(Exclusion(variant=f"v{i}", reason="no") for i in range(2))
    assert not space(2, 2, 2).eligible(everything).any()


def test_masks_can_not_be_written_to():
    actions = space(2, 2, 1)
    for mask in (actions.mask, actions.eligible((Exclusion(variant="v0", reason="no"),))):
        with pytest.raises(ValueError, match="read-only"):
            mask[0] = True


@pytest.mark.parametrize("name", ["a", "v-1", "Größe L", "mail@x.org:2+3", "x" * 64, "9"])
def test_names_people_use_are_allowed(name: str):
    assert Level(name=name).name == name


@pytest.mark.parametrize("name", ["", " a", "x" * 65, "a/b", "a\nb", "a\0", 'a"b', "{a}", "-\t"])
def test_names_hard_to_quote_are_refused(name: str):
    with pytest.raises(InvalidInputError, match="name"):
        Level(name=name)


@pytest.mark.parametrize("time", ["24:00", "9:00", "09:60", "0900", "09:00:00", "", "noon"])
def test_only_a_time_of_day_is_a_time(time: str):
    with pytest.raises(InvalidInputError, match="HH:MM"):
        Level(name="slot", time=time)


@pytest.mark.parametrize("time", ["00:00", "09:05", "23:59"])
def test_slots_take_a_time_of_day(time: str):
    slot = Level(name="slot", time=time)
    one = (Level(name="a"),)
    assert ActionSpace(variants=one, channels=one, slots=(slot,)).slots[0].time == time


def numbers(**values: float) -> tuple[tuple[str, float], ...]:
    return tuple(values.items())


def test_attributes_are_kept_in_order_of_name_and_can_be_hashed():
    one, other = (Level(name="a", attributes=v) for v in (numbers(b=1, a=2), numbers(a=2, b=1)))
    assert one == other
    assert hash(one) == hash(other)
    assert one.attributes == (("a", 2.0), ("b", 1.0))


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"attributes": numbers(a=float("nan"))}, "attributes.a"),
        ({"attributes": numbers(a=float("inf"))}, "attributes.a"),
        ({"attributes": numbers(a=1.1e6)}, "attributes.a"),
        ({"attributes": (("a", 1.0), ("a", 2.0))}, "attributes"),
        ({"attributes": (("a/b", 1.0),)}, "attributes"),
        ({"attributes": tuple((f"z{i}", 1.0) for i in range(65))}, "attributes"),
        ({"generation": -1}, "generation"),
        ({"generation": 1_000_001}, "generation"),
    ],
)
def test_a_level_out_of_range_is_refused(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        Level(name="a", **parts)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_later_generation_comes_last_whatever_its_factor():
    late = Level(name="late", generation=1)
    actions = ActionSpace(variants=(late, A), channels=(A, B), slots=(A,))
    order = [(v.name, c.name) for v, c, _ in map(actions.levels, range(4))]
    assert order == [("a", "a"), ("a", "b"), ("late", "a"), ("late", "b")]
    latest = Level(name="fax", generation=2)
    more = ActionSpace(variants=(late, A), channels=(latest, A, B), slots=(A,))
    order += [("late", "fax"), ("a", "fax")]
    assert [(v.name, c.name) for v, c, _ in map(more.levels, range(6))] == order
    assert [more.index(v, c, "a") for v, c in order] == list(range(6))


def test_a_retired_level_is_removed_before_any_rule():
    gone = Level(name="gone", retired=True)
    own = Exclusion(channel="a", reason="own")
    actions = ActionSpace(variants=(A, gone), channels=(A, B), exclusions=(own,))
    np.testing.assert_array_equal(actions.mask, [False, True, False, False])
    said = [(r.action, r.reason) for r in actions.removed(())]
    assert said == [(0, "own"), (2, "retired"), (3, "retired")]
    asked = Exclusion(variant="gone", reason="asked")
    np.testing.assert_array_equal(actions.eligible((asked,)), actions.mask)


A, B, AT_NINE = Level(name="a"), Level(name="b"), Level(name="nine", time="09:00")


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"variants": ()}, "variants"),
        ({"channels": ()}, "channels"),
        ({"slots": ()}, "slots"),
        ({"variants": (A, B, A)}, r"variants\[2\]"),
        ({"variants": (A, AT_NINE)}, r"variants\[1\].time"),
        ({"channels": (AT_NINE,)}, r"channels\[0\].time"),
        ({"variants": tuple(Level(name=str(i)) for i in range(1001))}, "variants"),
        ({"variants": (A, Level(name="b", attributes=numbers(p=1)))}, r"variants\[1\].attributes"),
        ({"channels": (Level(name="b", retired=True),)}, "channels"),
        ({"exclusions": (Exclusion(variant="z", reason="r"),)}, r"exclusions\[0\].variant"),
        ({"exclusions": (Exclusion(variant="a", reason="r"),)}, "exclusions"),
        ({"exclusions": (Exclusion(variant="a", reason="r"),) * 1001}, "exclusions"),
        (
            {
                "variants": tuple(Level(name=str(i)) for i in range(101)),
                "channels": tuple(Level(name=str(i)) for i in range(100)),
            },
            "10100 combinations",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(parts: dict[str, object], field: str):
    with pytest.raises(InvalidInputError, match=field):
        ActionSpace(**{"variants": (A,), "channels": (A,), **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({}, "at least one"),
        ({"variant": "a", "reason": ""}, "reason"),
        ({"slot": "a", "reason": "x" * 201}, "reason"),
    ],
)
def test_an_exclusion_names_a_factor_and_a_reason(parts: dict[str, str], said: str):
    with pytest.raises(InvalidInputError, match=said):
        Exclusion(**{"reason": "because", **parts})


def test_unknown_levels_and_actions_are_not_found():
    actions = space(2, 2, 2)
    with pytest.raises(NotFoundError, match="channel: no channel 'zz'"):
        actions.index("v0", "zz", "s0")
    for action in (-1, 8):
        with pytest.raises(NotFoundError, match="action"):
            actions.levels(action)
    with pytest.raises(InvalidInputError, match=r"exclusions\[1\].slot: no slot 'zz'"):
        actions.eligible((Exclusion(slot="s0", reason="r"), Exclusion(slot="zz", reason="r")))
