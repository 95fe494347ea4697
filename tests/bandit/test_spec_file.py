"""Specifications as text: every form reads the same, every error names its path."""

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit import policy, posterior, spec
from bandit.errors import InvalidInputError
from bandit.experiment import Experiment
from bandit.features import Term
from bandit.outcome import AGGREGATIONS
from bandit.spec import ExperimentSpec
from bandit.spec_file import MAX_BYTES, from_data, parse, to_data, to_json

TOML = """
name = "welcome"
description = "First message: Grüß Gott"
baseline = {variant = "short", channel = "email", slot = "morning"}
fallback = {variant = "short", channel = "push", slot = "morning"}

[actions]
variants = ["short", {name = "long"}]
channels = ["email", "push"]
slots = [{name = "morning", time = "09:30"}, {name = "evening", time = "18:00"}]
exclusions = [{channel = "push", slot = "evening", reason = "quiet after work"}]

[[context]]
name = "age"
kind = "number"
bounds = [18, 90]

[[context]]
name = "plan"
kind = "category"
levels = ["free", "pro"]
required = true

[outcome]
window = 86400
rewards = [{name = "click"}, {name = "bought", bounds = [0, 500], weight = 0.02}]

[policy]
draws = 512
noise = {sd = 0.5}
terms = [
  {of = "context:variant", prior_sd = 0.5}, {of = "context:channel"}, {of = "context:slot"},
]

[groups]
random = 0.05
baseline = 0.1

[publishing]
seconds = 2
"""

YAML = """
name: welcome
description: 'First message: Grüß Gott'
baseline: {variant: short, channel: email, slot: morning}
fallback: {variant: short, channel: push, slot: morning}
actions:
  variants: [{name: short}, long]
  channels: [email, push]
  slots:
    - {name: morning, time: "09:30"}
    - {name: evening, time: "18:00"}
  exclusions:
    - {channel: push, slot: evening, reason: quiet after work}
context:
  - {name: age, kind: number, bounds: [18, 90]}
  - {name: plan, kind: category, levels: [free, pro], required: true}
outcome:
  window: 86400
  rewards:
    - name: click
    - {name: bought, bounds: [0, 500], weight: 0.02}
policy:
  draws: 512
  noise: {sd: 0.5}
  terms:
    - {of: "context:variant", prior_sd: 0.5}
    - of: context:channel
    - of: context:slot
groups: {random: 0.05, baseline: 0.1}
publishing: {seconds: 2}
"""

WELCOME = parse(TOML, "toml")


def full(spec: ExperimentSpec) -> ExperimentSpec:
    """Give the specification as it is stored: derived defaults declared."""
    return replace(spec, policy=spec.full_policy)


def test_toml_yaml_and_json_are_the_same_specification():
    assert parse(YAML, "yaml") == parse(YAML, "yml") == WELCOME
    assert parse(to_json(WELCOME), "json") == full(WELCOME)
    assert WELCOME.policy.draws == 512
    assert [slot.time for slot in WELCOME.actions.slots] == ["09:30", "18:00"]


def test_what_is_left_out_is_the_default():
    least = parse(
        '{"name":"e","actions":{"variants":["a"],"channels":["x"]},'
        '"outcome":{"window":1,"rewards":[{"name":"r"}]}}',
        "json",
    )
    assert (least.groups.random, least.policy.kind) == (0.1, "thompson_sampling")
    assert least.actions.slots[0].name == "now"
    assert (least.baseline, least.fallback, least.context) == (None, None, ())


# --- round trips ------------------------------------------------------------------------

NAMES = st.from_regex(r"[a-zA-Z_äß0-9][\w .:@+-]{0,10}", fullmatch=True)
NUMBERS = st.integers(-5, 5) | st.floats(-1e6, 1e6)
LEVELS = st.lists(NAMES, min_size=1, max_size=3, unique=True)
VARIANTS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES, "attributes": st.fixed_dictionaries({"p": st.floats(-1, 1), "é": NUMBERS})},
        optional={"generation": st.integers(0, 9)},
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda level: level["name"],
)
CLOCKS = st.times().map(lambda t: f"{t:%H:%M}")
FINITE = st.floats(-1e6, 1e6)
FIELDS = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("number"),
            "bounds": st.tuples(st.floats(0, 1), st.floats(2, 1e9)).map(list),
            "scale": st.sampled_from(["linear", "log1p"]),
            "outside": st.sampled_from(["clip", "reject"]),
        }
    ),
    st.fixed_dictionaries({"kind": st.just("category"), "levels": LEVELS}),
    st.fixed_dictionaries({"kind": st.just("flag"), "required": st.booleans()}),
    st.fixed_dictionaries({"kind": st.just("cyclic"), "period": st.floats(1e-3, 1e6)}),
)
SPECS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "actions": st.fixed_dictionaries(
            {"variants": LEVELS | VARIANTS, "channels": LEVELS},
            optional={
                "slots": st.lists(
                    st.fixed_dictionaries({"name": NAMES}, optional={"time": CLOCKS}),
                    min_size=1,
                    max_size=3,
                    unique_by=lambda slot: slot["name"],
                )
            },
        ),
        "outcome": st.fixed_dictionaries(
            {
                "window": st.integers(1, 10**6) | st.floats(0.1, 1e6),
                "rewards": st.lists(
                    st.fixed_dictionaries({"name": NAMES}, optional={"weight": FINITE}),
                    min_size=1,
                    max_size=3,
                    unique_by=lambda reward: reward["name"],
                ),
            },
            optional={
                "default": FINITE,
                "silence": st.sampled_from(["default", "ignore"]),
                "aggregation": st.sampled_from(AGGREGATIONS),
            },
        ),
    },
    optional={
        "description": st.text(st.characters(codec="utf-8"), max_size=50),
        "context": st.lists(FIELDS, max_size=4).map(
            lambda fields: [{"name": f"f{i}", **field} for i, field in enumerate(fields)]
        ),
        "policy": st.fixed_dictionaries(
            {},
            optional={
                "exploration": st.just(0.0) | st.floats(0.001, 100),
                "draws": st.integers(16, 64),
                "noise": st.fixed_dictionaries({}, optional={"sd": st.floats(1e-6, 1e6)}),
            },
        ),
        "groups": st.fixed_dictionaries(
            {"random": st.floats(0, 0.5), "no_contact": st.floats(0, 0.5)}
        ),
        "publishing": st.fixed_dictionaries(
            {"seconds": st.floats(0.01, 60), "max_age": st.just(61)}
        ),
    },
)


@given(data=SPECS)
def test_a_specification_survives_being_written(data: dict[str, object]):
    spec = from_data(data)
    assert from_data(to_data(spec)) == full(spec)
    assert parse(to_json(spec), "json") == full(spec)
    assert to_json(parse(to_json(spec), "json")) == to_json(spec)


@given(data=SPECS)
def test_reading_does_not_change_what_is_read(data: dict[str, object]):
    before = copy.deepcopy(data)
    from_data(data)
    assert data == before


def test_a_levels_edits_and_attributes_are_read_and_written():
    text = """
    name = "welcome"
    [actions]
    channels = ["email"]
    [[actions.variants]]
    name = "short"
    attributes = { warmth = 0.5, length = -1 }
    [[actions.variants]]
    name = "long"
    attributes = { length = 1, warmth = 0 }
    generation = 2
    retired = true
    [outcome]
    window = 60
    rewards = [{ name = "click" }]
    """
    spec = parse(text, "toml")
    short, long = spec.actions.variants
    assert short.attributes == (("length", -1.0), ("warmth", 0.5))
    assert (long.generation, long.retired) == (2, True)
    assert to_data(spec)["actions"]["variants"] == [
        {"name": "short", "attributes": {"length": -1.0, "warmth": 0.5}},
        {
            "name": "long",
            "attributes": {"length": 1.0, "warmth": 0.0},
            "generation": 2,
            "retired": True,
        },
    ]
    assert to_data(spec)["actions"]["channels"] == [{"name": "email"}]


def test_json_is_canonical():
    text = to_json(WELCOME)
    assert text == json.dumps(
        json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert "Grüß Gott" in text
    reordered = dict(reversed(to_data(WELCOME).items()))
    assert to_json(from_data(reordered)) == text


# --- defaults that follow from other parts ----------------------------------------------

OLD = (
    '{"actions":{"channels":["x"],"variants":["a","b","c"]%s},"name":"e","outcome":{"rewards":'
    '[{"bounds":[0.0,3.0],"name":"r"}],"window":60},"policy":{"exploration":1.0,"kind":%s}}'
)
SLOTS = ',"slots":[{"name":"now"},{"name":"later","time":"09:30"}]'


@pytest.mark.parametrize("slots", ["", SLOTS], ids=["disjoint", "joint"])
@pytest.mark.parametrize("kind", ["thompson_sampling", "linucb", "uniform"])
def test_what_is_stored_decides_the_same_whatever_later_defaults_are(
    slots: str, kind: str, monkeypatch: pytest.MonkeyPatch
):
    before = parse(OLD % (slots, f'"{kind}"'), "json")
    written, scale = to_json(before), Experiment(before, secret=bytes(16)).prior().noise_scale
    monkeypatch.setattr(spec, "default_terms", lambda _: (Term(of="variant"), Term(of="slot")))
    monkeypatch.setattr(
        policy, "resolved_floor", lambda p, *_, **__: 0.01 if p.floor is None else p.floor
    )
    monkeypatch.setattr(posterior.Noise, "scale_for", lambda noise, _: noise.scale or 7.0)
    after = parse(written, "json")
    assert after.features.terms == before.features.terms
    assert after.chooser == before.chooser
    assert Experiment(after, secret=bytes(16)).prior().noise_scale == scale
    assert to_json(after) == written


def test_what_was_stored_before_reads_as_it_always_did():
    """Texts of old are read for ever: whoever changes a default keeps these for them."""
    joint = parse(OLD % (SLOTS, '"thompson_sampling"'), "json").full_policy
    assert [(term.of, term.prior_sd) for term in joint.terms] == [
        ("context", 2.0), ("context:variant", 2.0), ("context:slot", 2.0), ("variant:slot", 2.0),
    ]  # fmt: skip
    assert (joint.floor, joint.noise.scale) == (1.0 / (256 * 6), 0.1 * 3.0 * 3.0)
    disjoint = parse(OLD % ("", '"thompson_sampling"'), "json").full_policy
    assert [(term.of, term.prior_sd) for term in disjoint.terms] == [("context:variant", 2.0)]
    assert (disjoint.floor, disjoint.noise.scale) == (0.0, 0.1 * 3.0 * 3.0)


@pytest.mark.parametrize("width", [1e-300, 1e-20, 2e12])
@pytest.mark.parametrize("shape", [1e-9, 1e9])
def test_every_default_of_the_noise_can_be_written_out(width: float, shape: float):
    data = json.loads(OLD % ("", '"thompson_sampling"'))
    data["outcome"]["rewards"][0]["bounds"] = [-width / 2, width / 2]
    data["policy"]["noise"] = {"shape": shape}
    once = from_data(data)
    assert from_data(to_data(once)) == full(once)


def test_deriving_parts_leaves_the_text_alone():
    spec = parse(TOML, "toml")
    text = to_json(spec)
    assert spec.features.weights
    assert spec.actions.mask.any()
    assert to_json(spec) == text


# --- errors by their path ---------------------------------------------------------------


def edited(path: tuple[str | int, ...], value: object) -> ExperimentSpec:
    """Read the welcome specification with one value replaced, added or (None) taken away."""
    data = to_data(WELCOME)
    at = data
    for part in path[:-1]:
        at = at[part]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return from_data(data)


EDITS: list[tuple[tuple[str | int, ...], object, str]] = [
    (("name",), "", "name"),
    (("name",), 5, "name"),
    (("name",), None, "name"),
    (("description",), "x" * 2001, "description"),
    (("actions",), None, "actions"),
    (("actions",), [], "actions"),
    (("actions", "variants"), [], "actions.variants"),
    (("actions", "variants"), "short", "actions.variants"),
    (("actions", "variants", 1), {"name": "short"}, "actions.variants[1]"),
    (("actions", "variants", 1), {"name": "a/b"}, "actions.variants[1].name"),
    (("actions", "variants", 1), {"name": "b", "time": "09:00"}, "actions.variants[1].time"),
    (("actions", "variants", 1), 7, "actions.variants[1]"),
    (
        ("actions", "variants", 1),
        {"name": "b", "attributes": {"p": 1}},
        "actions.variants[1].attributes",
    ),
    (
        ("actions", "variants", 1),
        {"name": "b", "attributes": [["p", 1]]},
        "actions.variants[1].attributes",
    ),
    (
        ("actions", "variants", 1),
        {"name": "b", "attributes": {"p": "1"}},
        "actions.variants[1].attributes.p",
    ),
    (
        ("actions", "variants", 1),
        {"name": "b", "attributes": {"p": True}},
        "actions.variants[1].attributes.p",
    ),
    (
        ("actions", "variants", 1),
        {"name": "b", "attributes": {"p": 1e7}},
        "actions.variants[1].attributes.p",
    ),
    (
        ("actions", "variants", 1),
        {"name": "b", "generation": 1.5},
        "actions.variants[1].generation",
    ),
    (("actions", "variants", 1), {"name": "b", "retired": 1}, "actions.variants[1].retired"),
    (("actions", "variants", 0, "retired"), True, "baseline"),
    (("actions", "slots", 0, "time"), "25:00", "actions.slots[0].time"),
    (("actions", "slots", 0, "time"), 930, "actions.slots[0].time"),
    (("actions", "slots", 0, "hour"), 9, "actions.slots[0].hour"),
    (("actions", "exclusions", 0, "channel"), "fax", "actions.exclusions[0].channel"),
    (("actions", "exclusions", 0, "reason"), "", "actions.exclusions[0].reason"),
    (("actions", "exclusions", 0, "reason"), None, "actions.exclusions[0].reason"),
    (("actions", "exclusions", 0), {"reason": "r"}, "actions.exclusions[0]"),
    (("context", 0, "bounds"), [5, 1], "context[0].bounds"),
    (("context", 0, "bounds"), [5], "context[0].bounds[1]"),
    (("context", 0, "bounds"), ["a", 1], "context[0].bounds[0]"),
    (("context", 0, "bounds"), None, "context[0].bounds"),
    (("context", 0, "kind"), "numbr", "context[0].kind"),
    (("context", 0, "kind"), None, "context[0].kind"),
    (("context", 1, "name"), "age", "context[1].name"),
    (("context", 1, "levels"), ["a", "a"], "context[1].levels"),
    (("context", 1, "required"), "yes", "context[1].required"),
    (("outcome",), None, "outcome"),
    (("outcome", "window"), 0, "outcome.window"),
    (("outcome", "window"), "3600", "outcome.window"),
    (("outcome", "window"), True, "outcome.window"),
    (("outcome", "window"), float("nan"), "outcome.window"),
    (("outcome", "rewards"), None, "outcome.rewards"),
    (("outcome", "rewards", 1, "bounds"), [1, 0], "outcome.rewards[1].bounds"),
    (("outcome", "rewards", 1, "weight"), float("inf"), "outcome.rewards[1].weight"),
    (("outcome", "rewards", 1, "name"), "click", "outcome.rewards"),
    (("outcome", "silence"), "wait", "outcome.silence"),
    (("outcome", "aggregation"), "median", "outcome.aggregation"),
    (("policy", "kind"), "greedy", "policy.kind"),
    (("policy", "kind"), "fixed", "policy.action"),
    (("policy", "noise", "sd"), 0, "policy.noise.sd"),
    (("policy", "terms"), [{"of": "contxt"}], "policy.terms[0].of"),
    (("policy", "terms"), [{"of": "context"}], "policy.terms"),
    (("policy", "terms", 0, "prior_sd"), -1, "policy.terms[0].prior_sd"),
    (("policy", "floor"), 0.9, "policy.floor"),
    (("policy", "floor"), 1, "policy.floor"),
    (("policy", "draws"), 5, "policy.draws"),
    (("policy", "draws"), 256.5, "policy.draws"),
    (("policy", "draws"), "256", "policy.draws"),
    (("policy", "posterior"), "beta_bernoulli", "policy.posterior"),
    (("groups", "random"), 2, "groups.random"),
    (("groups", "random"), 0.95, "groups"),
    (("baseline",), None, "baseline"),
    (("baseline", "variant"), "zz", "baseline.variant"),
    (("baseline", "channel"), None, "baseline.channel"),
    (("fallback", "slot"), "evening", "fallback"),
    (("publishing", "outcomes"), 0, "publishing.outcomes"),
    (("publishing", "outcomes"), 1.5, "publishing.outcomes"),
    (("publishing", "max_age"), 0.5, "publishing.max_age"),
    (("nmae",), "x", "nmae"),
]


@pytest.mark.parametrize(("path", "value", "expected"), EDITS, ids=lambda v: str(v)[:40])
def test_an_error_names_its_path(path: tuple[str | int, ...], value: object, expected: str):
    with pytest.raises(InvalidInputError) as caught:
        edited(path, value)
    assert caught.value.field == expected
    assert caught.value.message


def test_the_unedited_specification_is_right():
    assert edited(("name",), "welcome") == full(WELCOME)


def test_an_unknown_fixed_action_names_its_path():
    with pytest.raises(InvalidInputError) as caught:
        edited(("policy",), {"kind": "fixed", "action": {"variant": "zz", "channel": "email"}})
    assert caught.value.field == "policy.action.variant"


def test_several_errors_are_all_named():
    with pytest.raises(InvalidInputError) as caught:
        from_data({"name": 5, "actions": {"variants": ["a"], "channels": [1]}})
    for part in ("3 errors", "name:", "actions.channels[0]:", "outcome: is required"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (("descripton",), "did you mean 'description'"),
        (("window",), "belongs to another table"),
        (("xyzzy",), "is not a field here"),
        (("policy", "explorations"), "did you mean 'exploration'"),
    ],
)
def test_an_unknown_field_suggests_what_was_meant(path: tuple[str, ...], said: str):
    with pytest.raises(InvalidInputError, match=said) as caught:
        edited(path, "x")
    assert caught.value.field == ".".join(path)


@pytest.mark.parametrize("data", [None, 5, "text", [], {1: 2}, {"name": b"x"}, {"name": {1, 2}}])
def test_data_of_no_sense_is_refused(data: object):
    with pytest.raises(InvalidInputError):
        from_data(data)


# --- text that is not a specification ---------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form", "said"),
    [
        ("name = ", "toml", "this is not toml"),
        ("a = 1\na = 2", "toml", "this is not toml"),
        ("{", "json", "this is not json"),
        ("", "json", "this is not json"),
        ("a: [", "yaml", "this is not yaml"),
        ("a: !!python/object:os.system x", "yaml", "this is not yaml"),
        ("name: 'a\0'", "yaml", "this is not yaml"),
        ("name = 2026-12-05", "toml", "no field takes"),
        ("[" * 100_000, "yaml", "recursion"),
        ("[" * 100_000, "json", "recursion"),
        ("a = " + "[" * 100_000, "toml", "recursion"),
        ("", "yaml", "needs a table"),
        ("[]", "json", "needs a table"),
        ("x", "ini", "none of toml, yaml, json"),
    ],
)
def test_other_text_is_refused(text: str, form: str, said: str):
    with pytest.raises(InvalidInputError, match=said):
        parse(text, form)


def test_yaml_anchors_are_refused():
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nname: *b\n"
    with pytest.raises(InvalidInputError, match="anchors and aliases are not allowed"):
        parse(bomb, "yaml")
    with pytest.raises(InvalidInputError, match="anchors"):
        parse("base: &base {name: a}\n<<: *base", "yaml")


@pytest.mark.parametrize("form", ["toml", "yaml", "json"])
def test_too_large_a_text_is_refused_before_it_is_read(form: str):
    with pytest.raises(InvalidInputError, match="larger than 1000000 bytes"):
        parse("#" * (MAX_BYTES + 1), form)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('{"name": ' + "1" * 5_000 + "}", "json"),
        ("name = " + "1" * 5_000, "toml"),
        ("name: " + "1" * 5_000, "yaml"),
        ("name: 2026-13-45", "yaml"),
    ],
)
def test_numbers_and_dates_python_can_not_hold_are_refused(text: str, form: str):
    with pytest.raises(InvalidInputError):
        parse(text, form)


def test_a_time_in_yaml_needs_no_quotes():
    assert parse(YAML.replace('"18:00"', "18:00"), "yaml") == WELCOME
