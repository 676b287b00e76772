"""A recipe is checked in its form, and what is wrong is named with its line."""

import re
from pathlib import Path

import pytest

from merge_cli.errors import RecipeError
from merge_cli.methods import method_names
from merge_cli.recipe import Choice, Recipe, check_recipe, load_recipe, parse_recipe
from merge_cli.recipe.mergekit import UNREAD_METHODS

LINEAR = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n"


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, name="r.yml", overrides=overrides)
    return str(caught.value)


def warned(text: str) -> tuple[str, ...]:
    return parse_recipe(text, name="r.yml").origin.warnings


def test_a_recipe_keeps_what_its_author_wrote() -> None:
    recipe = parse_recipe(
        """
merge_method: ties
base_model: base
models:
  - model: one
    parameters: {weight: [0, 1], density: 1e-1}
    fisher: fisher-one
  - model: two
    parameters:
      weight:
        - {filter: mlp, value: 0.5}
        - value: 1
parameters: {normalize: 1.0, trim: model}
prepare:
  dare: {drop_rate: 0.5}
  keep_largest: {density: 0.2, scope: model}
exclude:
  - lm_head.*
  - {pattern: "classifier.*", from: one}
  - {pattern: "*.rotary", drop: true}
dtype: torch.float32
out_dtype: bf16
seed: 7
name: whatever
"""
    )
    assert recipe.merge_method == "ties"
    assert recipe.base_model == "base"
    assert [entry.model for entry in recipe.models] == ["one", "two"]
    assert recipe.models[0].parameters == {"weight": (0.0, 1.0), "density": 0.1}
    assert recipe.models[0].fisher == "fisher-one"
    assert recipe.models[1].parameters == {"weight": Choice((("mlp", 0.5), (None, 1.0)))}
    assert recipe.parameters == {"normalize": 1.0, "trim": "model"}
    assert list(recipe.prepare) == ["dare", "keep_largest"]
    assert [(e.pattern, e.source, e.drop) for e in recipe.exclude] == [
        ("lm_head.*", None, False),
        ("classifier.*", "one", False),
        ("*.rotary", None, True),
    ]
    assert (recipe.dtype, recipe.out_dtype, recipe.seed) == ("float32", "bfloat16", 7)


def test_without_parameters_is_as_good_as_parameters_of_nothing() -> None:
    recipe = parse_recipe(LINEAR + "  - model: b\n    parameters:\nparameters:\n")
    assert recipe.models[1].parameters == {}
    assert recipe.parameters == {}


def test_the_long_form_of_a_model_is_its_path_and_revision() -> None:
    text = (
        "merge_method: linear\nmodels: [{model: {model: {path: org/a, revision: v1}}}, {model: {model: {path: b}}}]\n"
    )
    assert [entry.model for entry in parse_recipe(text).models] == ["org/a@v1", "b"]


def test_a_recipe_is_read_from_a_file_or_from_its_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yml"
    path.write_bytes(b"\xef\xbb\xbf" + LINEAR.encode())
    read = load_recipe(path)
    assert read.model_dump() == load_recipe(str(path)).model_dump() == load_recipe(LINEAR).model_dump()
    assert (read.origin.name, read.origin.folder) == ("r.yml", tmp_path)
    assert read.origin.text == LINEAR


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot read the recipe"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"# " + b"x" * 10_000_001, "bytes, expected 1000000 at most"),
        (b"", "expected a mapping"),
        (b"- a\n", "expected a mapping"),
        (b"\x89PNG\r\n", "not UTF-8"),
    ],
)
def test_a_file_that_holds_no_recipe_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "r.yml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=says):
        load_recipe(path)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read the recipe"):
        load_recipe(tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LINEAR + "dype: float32\n", "r.yml:5: dype: there is no such key here; did you mean 'dtype'?"),
        (LINEAR + "    weigth: 3\n", "r.yml:5: models.0.weigth: there is no such key here"),
        (LINEAR + "    fischer: f\n", "r.yml:5: models.0.fischer: there is no such key here; did you mean 'fisher'?"),
        (LINEAR + "exclude:\n  - {pattern: a, frm: b}\n", "r.yml:6: exclude.0.frm: there is no such key here"),
        (LINEAR.replace("weight", "wieght"), "r.yml:4: models.0.parameters.wieght: linear has no such parameter"),
        (LINEAR + "parameters: {normalise: true}\n", "hint: did you mean 'normalize'? linear takes normalize, weight"),
        (LINEAR.replace("linear", "liner"), "r.yml:1: merge_method: there is no method 'liner'"),
        (LINEAR.replace("linear", "liner"), "hint: did you mean 'linear'?"),
        ("models: [{model: a}]\n", "r.yml: merge_method: is missing"),
        ("merge_method: linear\n", "r.yml: models: is missing"),
        ("merge_method: linear\nmodels: []\n", "r.yml:2: models: expected a list of at least one"),
        ("merge_method: linear\nmodels: {model: a}\n", "r.yml:2: models: expected a list"),
        ("merge_method: linear\nmodels: [7]\n", "r.yml:2: models.0: expected a mapping, got 7"),
        ("merge_method: linear\nmodels:\n", "r.yml:2: models: expected a list, got nothing"),
        ("merge_method: linear\nmodels: [{model: 3}]\n", "r.yml:2: models.0.model: expected a path or hub id, got 3"),
        ("merge_method: linear\nmodels: [{model: ''}]\n", "expected a path or hub id"),
        (LINEAR + "parameters: {normalize: []}\n", "r.yml:5: parameters.normalize: the list is empty"),
        (LINEAR + "seed: -1\n", "r.yml:5: seed: expected at least 0, got -1"),
        (LINEAR + "seed: many\n", "r.yml:5: seed: expected a whole number, got 'many'"),
        (LINEAR + "seed: 1.5\n", "r.yml:5: seed: expected a whole number, got 1.5"),
        (LINEAR + "save_precision: maybe\n", "r.yml:5: save_precision: expected true or false, got 'maybe'"),
        (
            LINEAR + "    weight: 0.4\n",
            "r.yml:5: models.0.weight: there is no such key here; did you mean `parameters: {",
        ),
        (LINEAR + "density: 0.4\n", "density: there is no such key here; did you mean `parameters: {density: 0.4}`?"),
        (LINEAR + "normalize: true\n", "did you mean `parameters: {normalize: true}`?"),
        (LINEAR + "base_fisher: f\n", "base_fisher is given without base_model"),
        (LINEAR + "prepare: {dare: {drop_rate: 0.5}}\n", "r.yml:5: prepare: steps change task vectors"),
        (LINEAR + "base_model: b\nprepare:\n  dar: {}\n", "r.yml:7: prepare.dar: there is no such step"),
        (
            LINEAR + "base_model: b\nprepare:\n  dare: {drop_rate: 2}\n",
            "prepare.dare.drop_rate: expected at most 1, got 2",
        ),
        (LINEAR + "base_model: b\nprepare:\n  dare: {density: 2}\n", "hint: dare takes drop_rate, rescale"),
        (LINEAR + "base_model: b\nprepare:\n  keep_largest: {}\n", "prepare.keep_largest.density"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, says: str) -> None:
    assert says in refused(text)


@pytest.mark.parametrize(
    "name", ["2024-11-05", "2024-11-05 10:00:00", "123", "1.5", "1_000", "0x1F", "no", "on", "true"]
)
@pytest.mark.parametrize(
    "place", ["models: [{{model: {}}}]", "base_model: {}\nmodels: [a]", "models: [{{model: a, fisher: {}}}]"]
)
def test_a_name_that_yaml_takes_for_something_else_asks_for_quotes(name: str, place: str) -> None:
    text = "merge_method: linear\nparameters: {weight: 1}\n"
    said = refused(f"{text}{place.format(name)}\n")
    assert "expected a path or hub id, got " in said
    assert "put quotes around it" in said
    parse_recipe(text + place.format(f"'{name}'"))


def test_a_name_that_yaml_takes_for_nothing_asks_for_quotes() -> None:
    assert "put quotes around ~ and null" in refused("merge_method: linear\nmodels: [{model: ~}]\n")


def test_a_model_may_be_given_by_its_path_alone() -> None:
    text = "merge_method: linear\nmodels:\n  - ./one\n  - model: two\nparameters: {weight: 0.5}\n"
    assert [entry.model for entry in parse_recipe(text).models] == ["./one", "two"]
    assert "a model with a LoRA adapter ('a+b')" in refused(text.replace("./one", "a+b"))


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("merge_method: della\n", "hint: dare_ties "),
        ("merge_method: nuslerp\n", "hint: slerp "),
        ("merge_method: breadcrumbs_ties\n", "hint: breadcrumbs "),
        ("merge_method: model_stock\n", "hint: task_arithmetic "),
        ("tokenizer_source: union\n", "hint: remove the key: the output gets the base's tokenizer"),
        ("slices: []\n", "interpolated over the layers"),
        ("base_model: a+b\n", "merge_and_unload"),
    ],
)
def test_what_is_not_there_yet_comes_with_what_to_do_instead(text: str, instead: str) -> None:
    assert instead in refused(text)


def test_a_method_that_is_there_is_not_said_to_be_missing() -> None:
    assert not UNREAD_METHODS.keys() & set(method_names())
    for name, instead in UNREAD_METHODS.items():
        assert set(method_names()) & set(re.findall(r"\w+", instead)), name


def test_all_that_is_wrong_is_named_at_once() -> None:
    said = refused("merge_method: linear\nmodels:\n  - model: a\n    x: 1\n  - mdl: b\nfoo: 1\n")
    assert [line.split(": ")[1] for line in said.splitlines() if line.startswith("r.yml")] == [
        "models.0.x",
        "models.1.model",
        "models.1.mdl",
        "foo",
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slices", "[{sources: [{model: a, layer_range: [0, 4]}]}]"),
        ("modules", "{default: {models: []}}"),
        ("tokenizer", "{source: union}"),
        ("tokenizer", "{}"),
        ("tokenizer_source", "base"),
        ("chat_template", "auto"),
        ("experts", "[]"),
    ],
)
def test_what_is_not_there_yet_is_refused_by_name(key: str, value: str) -> None:
    said = refused(f"{LINEAR}{key}: {value}\n")
    assert f"r.yml:5: {key}" in said
    assert "not supported yet" in said


def test_everything_that_is_not_there_yet_is_named_at_once() -> None:
    text = "merge_method: sce\nmodels:\n  - {model: a/b+c/d}\ntokenizer_source: base\nchat_template: chatml\n"
    said = refused(text)
    assert said.count("not supported yet") == 4
    assert "r.yml:3: models.0.model: a model with a LoRA adapter ('a/b+c/d') is not supported yet" in said


def test_a_path_with_a_plus_that_exists_is_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a+b").mkdir()
    text = LINEAR.replace("model: a", "model: a+b")
    assert parse_recipe(text, folder=tmp_path / "here").models[0].model == "a+b"
    monkeypatch.chdir(tmp_path / "here")
    assert parse_recipe(text, folder=tmp_path).models[0].model == "a+b"
    with pytest.raises(RecipeError, match="LoRA"):
        parse_recipe(LINEAR.replace("model: a", "model: c+d"), folder=tmp_path)


def test_an_adapter_in_the_long_form_is_refused() -> None:
    text = "merge_method: linear\nmodels: [{model: {model: {path: a}, lora: {path: b}}}]\n"
    assert "adapters are not supported yet" in refused(text)


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("bfloat", "did you mean 'bfloat16'?"),
        ("int8", "'int8' is not a floating-point dtype"),
        ("16", "'16' is not a floating-point dtype; expected one of"),
        ("torch.flaot16", "did you mean 'float16'?"),
        ("[float16]", "is not a floating-point dtype"),
    ],
)
@pytest.mark.parametrize("key", ["dtype", "out_dtype"])
def test_a_wrong_dtype_is_refused_whatever_else_the_recipe_asks_for(key: str, dtype: str, says: str) -> None:
    said = refused(f"{key}: {dtype}\nmerge_method: passthrough\nslices: []\n")
    assert said.startswith(f"r.yml:1: {key}: ")
    assert says in said


@pytest.mark.parametrize(
    ("written", "meant"),
    [("torch.bfloat16", "bfloat16"), ("half", "float16"), ("fp32", "float32"), ("double", "float64"), ("null", None)],
)
def test_a_dtype_has_several_names(written: str, meant: str | None) -> None:
    assert parse_recipe(f"{LINEAR}dtype: {written}\n").dtype == meant


def test_a_parameter_of_another_method_is_a_warning() -> None:
    text = LINEAR.replace("weight: 1", "weight: 1, density: 0.5") + "parameters: {int8_mask: true, lambda: 2}\n"
    assert warned(text) == (
        "r.yml:5: parameters.int8_mask: linear has no such parameter; it is not used",
        "r.yml:5: parameters.lambda: linear has no such parameter; it is not used",
        "r.yml:4: models.0.parameters.density: linear has no such parameter; it is not used",
    )


def test_a_parameter_for_all_models_that_stands_in_one_is_a_warning() -> None:
    (warning,) = warned(LINEAR.replace("weight: 1", "weight: 1, normalize: false"))
    assert warning.startswith("r.yml:4: models.0.parameters.normalize: normalize counts for all models")


def test_top_level_keys_that_only_hold_anchors_are_allowed() -> None:
    text = """
const_tag: &ONE first
const_tag: &TWO second
const_tag: &FACTOR 0.25
scales: &scales
  parameters: {weight: *FACTOR}
merge_method: linear
models:
  - {model: *ONE, <<: *scales}
  - {model: *TWO, parameters: {weight: 0.75}}
"""
    recipe = parse_recipe(text)
    assert [(entry.model, entry.parameters["weight"]) for entry in recipe.models] == [("first", 0.25), ("second", 0.75)]
    assert recipe.origin.warnings == ()


def test_a_slip_of_the_pen_is_not_taken_for_a_holder_of_anchors_without_a_word() -> None:
    (warning,) = warned(LINEAR + "parametrs: &p {normalize: false}\n")
    assert warning.startswith("r.yml:5: parametrs: there is no such key")
    assert "did you mean 'parameters'?" in warning


def test_a_key_that_uses_an_anchor_but_holds_none_is_refused() -> None:
    assert "r.yml:6: parametrs: there is no such key" in refused(LINEAR + "x: &p {normalize: false}\nparametrs: *p\n")


@pytest.mark.parametrize("key", ["dtype", "name"])
def test_a_key_of_recipes_may_not_stand_twice_even_with_anchors(key: str) -> None:
    assert f"r.yml:6: '{key}' stands twice" in refused(f"{LINEAR}{key}: &x float16\n{key}: &y float32\n")


def test_a_recipe_is_frozen() -> None:
    recipe = parse_recipe(LINEAR)
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_a_recipe_may_be_made_in_python_and_written_out_again() -> None:
    content = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"weight": [0.0, 1.0]}},
            {"model": "b", "parameters": {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 1.0}]}},
        ],
        "parameters": {"normalize": False},
        "exclude": [{"pattern": "x.*", "from": "a"}],
    }  # fmt: skip
    recipe = Recipe.model_validate(content)
    assert recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True) == content


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"merge_method": "tie"}, "recipe: merge_method: there is no method 'tie'"),
        ({"parameters": {"denisty": 1}}, "recipe: parameters.denisty: ties has no such parameter"),
        ({"prepare": {"drop": {}}}, "recipe: prepare.drop: there is no such step"),
        ({"prepare": {"dare": {"drop_rate": 2}}}, "recipe: prepare.dare.drop_rate"),
    ],
)
def test_a_recipe_made_in_python_is_checked_like_one_that_is_read(change: dict[str, object], says: str) -> None:
    recipe = Recipe.model_validate({"merge_method": "ties", "base_model": "b", "models": [{"model": "a"}], **change})
    with pytest.raises(RecipeError) as caught:
        check_recipe(recipe)
    assert says in str(caught.value)


def test_checking_again_warns_once() -> None:
    recipe = parse_recipe(LINEAR + "parameters: {int8_mask: true}\n")
    assert len(recipe.origin.warnings) == 1
    assert check_recipe(recipe).origin == recipe.origin
