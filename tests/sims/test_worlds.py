"""Worlds: rates by hand, customers by their shares, and examples that fit together."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bandit import spec_file
from bandit.errors import InvalidInputError
from bandit.kernels.compiling import Floats
from bandit.spec import ExperimentSpec
from sims import worlds
from sims.worlds import (
    EXAMPLES,
    Arrivals,
    Availability,
    Contexts,
    Course,
    Delay,
    Effect,
    Fatigue,
    Generated,
    Segment,
    Traffic,
    Trait,
    Unsubscribes,
    Wheel,
    World,
)

SPEC: ExperimentSpec = spec_file.from_data(
    {
        "name": "small",
        "actions": {
            "variants": ["a", "b"],
            "channels": ["email", "push"],
            "slots": [{"name": "now"}, {"name": "late", "time": "21:00"}],
        },
        "context": [
            {"name": "age", "kind": "number", "bounds": [18, 80]},
            {"name": "segment", "kind": "category", "levels": ["new", "old"]},
            {"name": "has_app", "kind": "flag"},
        ],
        "outcome": {"window": 60, "rewards": [{"name": "click"}]},
    }
)
WORLD = World(
    reward="click",
    base=-2.0,
    traits=(
        Trait(field="age", low=18, high=80),
        Trait(field="segment", levels={"new": 1, "old": 3}, missing=0.25),
        Trait(field="has_app", share=0.4),
    ),
    effects=(
        Effect(adds=0.5, variant="a"),
        Effect(adds=1.0, variant="b", channel="push", when={"age": (18, 40)}),
        Effect(adds=-3.0, channel="push", when={"has_app": False}),
        Effect(adds=0.25, slot="late", when={"segment": "new", "has_app": True}),
    ),
)


def rate(log_odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-log_odds))


def expected(world: World, context: dict[str, object]) -> Floats:
    """Give the expected outcomes of one customer who is not drawn but given."""
    course = Course(world, SPEC)
    row = np.array([SPEC.schema.row(context)])
    given = Arrivals(row, np.array([world.traffic.begin]), np.array([0]), ())
    return course.expected(given, 0, course.history())[0]


@pytest.mark.parametrize(
    ("context", "action", "log_odds"),
    [
        ({"age": 30.0, "segment": "new", "has_app": True}, ("a", "email", "now"), -1.5),
        ({"age": 30.0, "segment": "new", "has_app": True}, ("a", "email", "late"), -1.25),
        ({"age": 30.0, "segment": "new", "has_app": True}, ("b", "push", "now"), -1.0),
        ({"age": 30.0, "segment": "new", "has_app": True}, ("b", "push", "late"), -0.75),
        ({"age": 30.0, "segment": "old", "has_app": True}, ("b", "push", "late"), -1.0),
        ({"age": 40.0, "segment": "old", "has_app": True}, ("b", "push", "now"), -2.0),
        ({"age": 18.0, "segment": "old", "has_app": False}, ("b", "push", "now"), -4.0),
        ({"age": 39.9, "segment": None, "has_app": False}, ("a", "push", "now"), -4.5),
        ({"age": None, "segment": "new", "has_app": None}, ("b", "push", "late"), -2.0),
        ({}, ("b", "email", "late"), -2.0),
    ],
)
def test_rates_by_hand(context: dict[str, object], action: tuple[str, str, str], log_odds: float):
    rates = expected(WORLD, context)
    assert rates.shape == (8,)
    assert rates[SPEC.actions.index(*action)] == pytest.approx(rate(log_odds), rel=1e-12)


@pytest.mark.parametrize(("age", "adds"), [(18.0, -0.8), (49.0, 0.0), (80.0, 0.8), (None, 0.0)])
def test_a_slope_goes_from_bound_to_bound(age: float | None, adds: float):
    world = replace(WORLD, effects=(Effect(adds=0.8, slope="age", channel="push"),))
    rates = expected(world, {"age": age})
    assert rates[SPEC.actions.index("a", "push", "now")] == pytest.approx(rate(-2.0 + adds))
    assert rates[SPEC.actions.index("a", "email", "now")] == pytest.approx(rate(-2.0))


def test_without_effects_all_actions_are_alike():
    plain = World(reward="click")
    np.testing.assert_array_equal(expected(plain, {}), np.full(8, 0.5))


def test_customers_are_drawn_by_their_shares():
    """10,000 customers, five standard deviations each: 6e-7 a piece to fail; seed fixed."""
    rows = Course(WORLD, SPEC, seed=1).arrivals(0, 10_000).rows
    ages = rows[:, 0]
    assert 18 <= ages.min() < 19 < 79 < ages.max() < 80
    assert abs(ages.mean() - 49.0) < 5 * (62 / math.sqrt(12)) / 100
    shares = {
        "missing": (np.isnan(rows[:, 1]).sum(), 0.25),
        "old": ((rows[:, 1] == 1).sum(), 0.75 * 0.75),
        "app": ((rows[:, 2] == 1).sum(), 0.4),
    }
    for count, share in shares.values():
        assert abs(count - 10_000 * share) < 5 * math.sqrt(10_000 * share * (1 - share))


@pytest.mark.parametrize(
    ("trait", "mean", "sd"),
    [
        (Trait(field="age", low=5, high=500, log=True), math.log(50), math.log(100) / 12**0.5),
        (Trait(field="age", mean=3.0, sd=0.5, log=True), 3.0, 0.5),
    ],
)
def test_a_logarithmic_trait(trait: Trait, mean: float, sd: float):
    """4,000 draws, five standard deviations: 6e-7 to fail; seed fixed."""
    rows = Course(replace(WORLD, traits=(trait,)), SPEC, seed=2).arrivals(0, 4_000).rows
    logs = np.log(rows[:, 0])
    assert abs(logs.mean() - mean) < 5 * sd / math.sqrt(4_000)
    assert logs.std() == pytest.approx(sd, rel=0.06)  # five standard deviations of the normal's
    assert np.isnan(rows[:, 1:]).all()


def test_segments_are_drawn_together():
    """20,000 customers: shares and means within five standard deviations; seed fixed."""
    young = Segment(
        name="young",
        share=0.3,
        traits=(Trait(field="age", low=18, high=30), Trait(field="has_app", share=0.9)),
    )
    effects = (Effect(adds=1.0, segment="young", variant="a"),)
    world = replace(WORLD, segments=(young,), effects=effects)
    course = Course(world, SPEC, seed=3)
    arrivals = course.arrivals(0, 20_000)
    rates = course.expected(arrivals, 0, course.history())
    is_young = np.isclose(rates[:, 0], rate(-1.0))
    assert abs(is_young.mean() - 0.3) < 5 * math.sqrt(0.21 / 20_000)
    assert arrivals.rows[is_young, 0].max() < 30
    assert arrivals.rows[~is_young, 0].max() > 70
    assert abs(arrivals.rows[is_young, 2].mean() - 0.9) < 5 * math.sqrt(0.09 / 6_000)
    assert abs(arrivals.rows[~is_young, 2].mean() - 0.4) < 5 * math.sqrt(0.24 / 14_000)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"traits": (Trait(field="height", low=1, high=2),)}, "traits[0]"),
        ({"traits": (Trait(field="segment", low=1, high=2),)}, "traits[0]"),
        ({"traits": (Trait(field="segment", levels={"odd": 1.0}),)}, "traits[0]"),
        ({"reward": "applause"}, "reward"),
        ({"effects": (Effect(adds=1), Effect(adds=1, variant="c"))}, "effects[1]"),
        ({"effects": (Effect(adds=1, slot="never"),)}, "effects[0]"),
        ({"effects": (Effect(adds=1, slope="segment"),)}, "effects[0].slope"),
        ({"effects": (Effect(adds=1, when={"age": "new"}),)}, "effects[0].when"),
        ({"effects": (Effect(adds=1, when={"segment": "odd"}),)}, "effects[0].when"),
        ({"effects": (Effect(adds=1, when={"height": True}),)}, "effects[0].when"),
        ({"availability": (Availability(variant="c", appears=1),)}, "availability[0]"),
        (
            {
                "availability": (
                    Availability(variant="a", retires=2),
                    Availability(variant="b", appears=3),
                )
            },
            "availability",
        ),
        ({"response": "wheel", "effects": (), "base": 0.0, "wheel": Wheel(delta=0.5)}, "wheel"),
        (
            {
                "unsubscribes": Unsubscribes(share=0.1, channels={"fax": 0.5}),
                "traffic": Traffic(customers=10),
            },
            "unsubscribes.channels",
        ),
    ],
)
def test_a_world_of_another_experiment_is_refused(changes: dict[str, Any], field: str):
    worlds.check(WORLD, SPEC)
    with pytest.raises(InvalidInputError) as caught:
        Course(replace(WORLD, **changes), SPEC)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Trait(field="a"), ""),
        (lambda: Trait(field="a", low=1, high=2, share=0.5), ""),
        (lambda: Trait(field="a", low=2, high=1), "low"),
        (lambda: Trait(field="a", low=0, high=1, log=True), "low"),
        (lambda: Trait(field="a", share=1.5), "share"),
        (lambda: Trait(field="a", levels={"x": -1.0}), "levels"),
        (lambda: Trait(field="a", share=0.5, missing=math.nan), "missing"),
        (lambda: Effect(adds=math.nan), "adds"),
        (lambda: Effect(adds=1, when={"a": (2, 1)}), "when.a"),
        (lambda: Effect(adds=1, begins=3, ends=3), "ends"),
        (lambda: Effect(adds=1, weekdays=("monday",)), "weekdays"),
        (lambda: Effect(adds=1, hours=(0, 25)), "hours"),
        (lambda: Generated(), ""),
        (lambda: Generated(levels=math.inf), "levels"),
        (lambda: Wheel(delta=1.0), "delta"),
        (lambda: Traffic(per_hour=0), "per_hour"),
        (lambda: Traffic(hours=(1.0,) * 23), "hours"),
        (lambda: Traffic(start="soon"), "start"),
        (lambda: Delay(mean=0), "mean"),
        (lambda: Delay(mean=1, kind="lognormal"), "spread"),
        (lambda: World(reward="click", response="linear"), "noise"),
        (lambda: World(reward="click", missing=2.0), "missing"),
        (lambda: World(reward="click", fatigue=Fatigue(per_message=1, half_life=1)),
         "traffic.customers"),
        (lambda: World(reward="click", effects=(Effect(adds=1, segment="x"),)),
         "effects[0].segment"),
        (lambda: World(reward="c", traits=(WORLD.traits[0], WORLD.traits[0])), "traits[1].field"),
    ],
)  # fmt: skip
def test_what_no_world_can_be(make: Callable[[], object], field: str):
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.field == field


@pytest.mark.parametrize(
    "text",
    [
        "",
        "reward = ",
        'reward = "click"\nbase = "low"\ndelay = {mean = 1}\ntraits = []\neffects = []',
        'reward = "click"\nbase = 0\neffects = []\nweather = "fine"',
        'reward = "click"\nbase = 0\ndelay = {mean = 1}\ntraits = [{ name = "age" }]\neffects = []',
    ],
)
def test_a_file_that_is_no_world(tmp_path: Path, text: str):
    path = tmp_path / "world.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        worlds.read(path)
    assert caught.value.field == str(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_world(tmp_path: Path):
    with pytest.raises(InvalidInputError):
        worlds.read(tmp_path / "missing.toml")


SPECS = sorted(p for p in EXAMPLES.glob("*.toml") if not p.stem.endswith("_world"))
WORLDS = sorted(EXAMPLES.glob("*_world.toml"))


def test_there_are_examples():
    assert {p.stem for p in SPECS} >= {"spring_sale", "hillstrom"}
    assert WORLDS


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_an_example_is_an_experiment(path: Path):
    spec = spec_file.parse(path.read_text(), "toml")
    read = spec_file.parse(spec_file.to_json(spec), "json")
    assert read == replace(spec, policy=spec.full_policy)


@pytest.mark.parametrize("path", WORLDS, ids=lambda path: path.stem)
def test_an_example_world_fits_its_experiment(path: Path):
    experiment = path.with_name(path.name.replace("_world", ""))
    spec = spec_file.parse(experiment.read_text(), "toml")
    world = worlds.read(path)
    course = Course(world, spec)
    arrivals = course.arrivals(0, 200)
    spec.schema.check_rows(arrivals.rows)
    rates = course.expected(arrivals, 0, course.history())
    assert ((rates > 0) & (rates < 1)).all()


def test_the_example_campaign_is_as_large_as_promised():
    spec = spec_file.parse((EXAMPLES / "spring_sale.toml").read_text(), "toml")
    sizes = tuple(len(levels) for levels in spec.actions.factors)
    assert all(size >= least for size, least in zip(sizes, (4, 3, 6), strict=True))
    assert spec.context


def test_customers_of_the_example_differ_in_what_is_best_for_them():
    """Without that, there would be nothing for a contextual policy to find."""
    spec = spec_file.parse((EXAMPLES / "spring_sale.toml").read_text(), "toml")
    world = worlds.read(EXAMPLES / "spring_sale_world.toml")
    course = Course(world, spec)
    arrivals = course.arrivals(0, 300)
    rates = course.expected(arrivals, 0, course.history())
    best = np.where(course.eligible(arrivals), rates, 0.0).argmax(axis=1)
    assert len(set(best.tolist())) > 3


def test_a_world_is_written_and_read(tmp_path: Path):
    path = tmp_path / "world.toml"
    for name in worlds.names():
        world = worlds.preset(name).world
        worlds.write(path, world)
        assert worlds.read(path) == world
    worlds.write(path, WORLD)
    assert worlds.read(path) == WORLD


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('reward = "click"\neffects = [{ adds = 1, slope = 3 }]', "effects[0].slope"),
        ('reward = "click"\neffects = [{ add = 1 }]', "effects[0].adds: is required"),
        ('reward = "click"\ntraffic = { per_hour = -1 }', "traffic.per_hour: must be"),
        ('reward = "click"\nweather = "fine"', "weather: is not a field"),
    ],
)
def test_an_error_names_file_and_field(tmp_path: Path, text: str, told: str):
    path = tmp_path / "world.toml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=re.escape(told)) as caught:
        worlds.read(path)
    assert caught.value.field == str(path)


# --- the reference ------------------------------------------------------------------------


REFERENCE = Path(__file__).parents[2] / "docs/reference/worlds.md"
PARTS = {
    "The file": World, "Traits": Trait, "Segments": Segment, "Contexts": Contexts,
    "Effects": Effect, "Generated": Generated, "Wheel": Wheel, "Traffic": Traffic, "Delay": Delay,
    "Fatigue": Fatigue, "Unsubscribes": Unsubscribes, "Availability": Availability,
}  # fmt: skip


def test_the_reference_has_every_part_of_a_world():
    parts = {part for part in map(worlds.__dict__.get, worlds.__all__) if is_dataclass(part)}
    assert parts == set(PARTS.values())


@pytest.mark.parametrize("heading", PARTS)
def test_every_field_of_a_world_is_documented_with_its_default(heading: str):
    section = re.split(r"^#{2,3} ", REFERENCE.read_text(), flags=re.MULTILINE)
    [text] = [part for part in section if part.startswith(f"{heading}\n")]
    told = {}
    for line in re.findall(r"^\| `(\w+)` \|.*$", text, flags=re.MULTILINE):
        row = next(r for r in text.splitlines() if r.startswith(f"| `{line}` |"))
        told[line] = row.split(" | ")[2]
    declared = {}
    for field in fields(PARTS[heading]):
        default = field.default
        if field.default_factory is not MISSING:
            default = field.default_factory()
            default = {} if is_dataclass(default) else default
        if default is MISSING:
            declared[field.name] = "required"
        elif default is None:
            declared[field.name] = "none"
        else:
            declared[field.name] = f"`{json.dumps(default)}`"
    assert told == declared


def test_the_worlds_of_the_reference_are_worlds(tmp_path: Path):
    shown = re.findall(r"<!-- world -->\n```toml\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
    assert len(shown) == 2
    for text in shown:
        (tmp_path / "world.toml").write_text(text)
        assert worlds.read(tmp_path / "world.toml").reward == "click"


def test_every_world_that_ships_is_in_the_reference():
    _, _, section = REFERENCE.read_text().partition("## Worlds that")
    told = re.findall(r"^\| `([\w-]+)` \| ", section, re.MULTILINE)
    assert sorted(told) == worlds.names()
