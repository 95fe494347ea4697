"""Worlds: rates by hand, customers by their shares, and examples that fit together."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bandit import spec_file
from bandit.errors import InvalidInputError
from bandit.spec import ExperimentSpec
from sims import worlds
from sims.worlds import EXAMPLES, Effect, Trait, World

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
    delay=0.5,
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
    rates = WORLD.rates(context, SPEC.actions)
    assert rates.shape == (8,)
    assert rates[SPEC.actions.index(*action)] == pytest.approx(rate(log_odds), rel=1e-12)


def test_without_effects_all_actions_are_alike():
    plain = World(reward="click", base=0.0, delay=1.0, traits=(), effects=())
    np.testing.assert_array_equal(plain.rates({}, SPEC.actions), np.full(8, 0.5))


def test_customers_are_drawn_by_their_shares():
    """10,000 customers, five standard deviations each: 6e-7 a piece to fail; seed fixed."""
    rng = np.random.default_rng(1)
    drawn = [WORLD.customer(rng) for _ in range(10_000)]
    ages = np.array([c["age"] for c in drawn])
    assert 18 <= ages.min() < 19 < 79 < ages.max() < 80
    assert abs(ages.mean() - 49.0) < 5 * (62 / math.sqrt(12)) / 100
    shares = {
        "missing": (sum(c["segment"] is None for c in drawn), 0.25),
        "old": (sum(c["segment"] == "old" for c in drawn), 0.75 * 0.75),
        "app": (sum(c["has_app"] is True for c in drawn), 0.4),
    }
    for count, share in shares.values():
        assert abs(count - 10_000 * share) < 5 * math.sqrt(10_000 * share * (1 - share))
    assert {type(c["has_app"]) for c in drawn} == {bool}


def test_a_logarithmic_trait():
    trait = Trait(field="basket", low=5, high=500, log=True)
    rng = np.random.default_rng(2)
    logs = np.log([trait.draw(rng) for _ in range(4_000)])
    assert math.log(5) <= logs.min() < logs.max() <= math.log(500)
    spread = (math.log(500) - math.log(5)) / math.sqrt(12)
    middle = (math.log(500) + math.log(5)) / 2
    assert abs(logs.mean() - middle) < 5 * spread / math.sqrt(4_000)


def test_a_customer_is_given_by_the_seed():
    one, same, other = (WORLD.customer(np.random.default_rng([7, i])) for i in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"traits": (Trait(field="height", low=1, high=2),)}, "traits[0]"),
        ({"reward": "applause"}, "reward"),
        ({"effects": (Effect(adds=1), Effect(adds=1, variant="c"))}, "effects[1]"),
        ({"effects": (Effect(adds=1, slot="never"),)}, "effects[0]"),
    ],
)
def test_a_world_of_another_experiment_is_refused(changes: dict[str, object], field: str):
    given = {name: getattr(WORLD, name) for name in World.__dataclass_fields__}
    WORLD.check(SPEC)
    with pytest.raises(InvalidInputError) as caught:
        World(**{**given, **changes}).check(SPEC)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "text",
    [
        "",
        "reward = ",
        'reward = "click"\nbase = "low"\ndelay = 1\ntraits = []\neffects = []',
        'reward = "click"\nbase = 0\ndelay = 1\ntraits = []\neffects = []\nweather = "fine"',
        'reward = "click"\nbase = 0\ndelay = 1\ntraits = [{ name = "age" }]\neffects = []',
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
    world.check(spec)
    rng = np.random.default_rng(3)
    for _ in range(200):
        context = world.customer(rng)
        spec.schema.row(context)
        rates = world.rates(context, spec.actions)
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
    rng = np.random.default_rng(4)
    best = {
        int(
            np.argmax(
                np.where(spec.actions.mask, world.rates(world.customer(rng), spec.actions), 0)
            )
        )
        for _ in range(300)
    }
    assert len(best) > 3
