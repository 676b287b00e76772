"""Configurations that differ in what the same tensors compute."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.plan.configs import meaning_of
from tests.checkpoints import LLAMA, recipe_over, write_checkpoint

CONFIG = {**LLAMA, "hidden_act": "silu", "num_attention_heads": 4, "rms_norm_eps": 1e-6}


def planned(folder: Path, configs: Mapping[str, Mapping[str, Any]], **recipe: Any) -> MergePlan:
    """Plan task arithmetic of checkpoints that have these configurations onto ``base``; without one a linear merge."""
    for i, (name, config) in enumerate(configs.items()):
        write_checkpoint(folder / name, {"layers.0.w": [1.0 + i, 2.0]}, config=config)
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in configs if name != "base"]
    content = {"merge_method": "linear", "models": models}
    if "base" in configs:
        content |= {"merge_method": "task_arithmetic", "base_model": "base"}
    return build_plan(recipe_over(folder, {**content, **recipe}))


def test_equal_configurations_are_no_reason_for_a_word(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"base": CONFIG, "one": CONFIG, "two": CONFIG})
    assert plan.warnings == ()
    assert plan.notes == ()


def test_a_field_that_differs_is_told_of_once_with_both_values(tmp_path: Path) -> None:
    other = {**CONFIG, "num_attention_heads": 8}
    assert planned(tmp_path, {"base": CONFIG, "one": other, "two": other}).warnings == (
        "num_attention_heads is 8 in one, two, and 4 in base, whose configuration the output gets: the output computes "
        "otherwise than what it was made from",
    )


def test_each_value_is_told_of_with_the_models_that_have_it(tmp_path: Path) -> None:
    configs = {name: {**CONFIG, "rms_norm_eps": eps} for name, eps in [("base", 1e-6), ("one", 1e-5), ("two", 1e-3)]}
    (warning,) = planned(tmp_path, configs).warnings
    assert warning.startswith("rms_norm_eps is 1e-05 in one; 0.001 in two, and 1e-06 in base, ")


def test_without_a_base_the_first_model_gives_the_configuration(tmp_path: Path) -> None:
    (warning,) = planned(tmp_path, {"one": CONFIG, "two": {**CONFIG, "hidden_act": "gelu"}}).warnings
    assert warning.startswith('hidden_act is "gelu" in two, and "silu" in one, whose configuration')


@pytest.mark.parametrize(
    "change",
    [
        {"attention_dropout": 0.1, "initializer_range": 0.5, "use_cache": False, "transformers_version": "4.0"},
        {"rms_norm_eps": 0.000001, "torch_dtype": "bfloat16", "_name_or_path": "elsewhere"},
        {"logit_scale": 4.0},
        {"use_sliding_window": False, "sliding_window": 4096, "head_dim": None},
    ],
)
def test_how_a_model_was_trained_and_what_only_one_says_is_no_difference(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    assert planned(tmp_path, {"base": {**CONFIG, "sliding_window": None}, "one": {**CONFIG, **change}}).warnings == ()


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("sliding_window", None, 4096),
        ("layer_types", ["full_attention"] * 40, ["sliding_attention"] * 40),
        ("final_logit_softcapping", 30.0, None),
        ("attention_bias", True, False),
        ("num_experts_per_tok", 2, 4),
        ("patch_size", 16, 32),
    ],
)
def test_whatever_decides_what_weights_compute_counts(tmp_path: Path, field: str, one: Any, other: Any) -> None:
    warnings = planned(tmp_path, {"base": {**CONFIG, field: one}, "one": {**CONFIG, field: other}}).warnings
    assert [warning.split()[0] for warning in warnings] == [field]
    assert len(warnings[0]) < 300


def test_the_parts_of_a_model_of_several_parts_are_compared_by_their_place(tmp_path: Path) -> None:
    base, one = ({**LLAMA, "text_config": {"num_attention_heads": heads}} for heads in (4, 8))
    (warning,) = planned(tmp_path, {"base": base, "one": one}).warnings
    assert warning.startswith("text_config.num_attention_heads is 8 in one, and 4 in base")


def test_a_longer_text_is_a_note(tmp_path: Path) -> None:
    base, one = ({**CONFIG, "max_position_embeddings": length} for length in (64, 4096))
    plan = planned(tmp_path, {"base": base, "one": one})
    assert plan.warnings == ()
    assert plan.notes == (
        "max_position_embeddings is 4096 in one, and 64 in base, whose configuration the output gets",
    )


OLD = {"rope_theta": 500000.0, "rope_scaling": {"type": "yarn", "factor": 4.0}}
NEW = {"rope_parameters": {"rope_theta": 500000, "rope_type": "yarn", "factor": 4.0, "beta_fast": 32}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (OLD, NEW),
        ({"rope_theta": 1e4, "rope_scaling": None}, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
        (
            {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
            {
                "rope_parameters": {
                    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
                    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
                }
            },
        ),
    ],
)
def test_old_and_new_spellings_of_rotary_positions_are_one(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert planned(tmp_path, {"base": {**CONFIG, **one}, "one": {**CONFIG, **other}}).warnings == ()


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"rope_theta": 1e4}, {"rope_parameters": {"rope_theta": 1e6}}, "rope_theta is 1000000.0 in one, and 10000.0"),
        ({"rope_theta": 1e4}, {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        (OLD, {**OLD, "rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_scaling"),
        ({"rope_local_base_freq": 1e4}, {"rope_local_base_freq": 1e5}, "sliding_attention.rope_theta"),
    ],
)
def test_rotary_positions_that_differ_are_told_of(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], said: str
) -> None:
    (warning,) = planned(tmp_path, {"base": {**CONFIG, **one}, "one": {**CONFIG, **other}}).warnings
    assert warning.startswith(said)


@pytest.mark.parametrize("strange", [7, [1], "x", {"rope_theta": {"a": [1]}}, {"full_attention": {}}])
def test_a_configuration_of_another_form_breaks_nothing(strange: Any) -> None:
    for key in ("rope_parameters", "rope_scaling", "layer_types", "text_config", "architectures"):
        assert isinstance(meaning_of({key: strange, "sliding_window": 3}), dict)


# --- architectures ----------------------------------------------------------------------------------------------------


BERT = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}


def test_models_of_two_architectures_are_refused_though_their_tensors_fit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        planned(tmp_path, {"base": BERT, "one": CONFIG})
    lines = str(caught.value).splitlines()
    assert lines[0] == "one is a LlamaForCausalLM (llama), and the base base a BertForSequenceClassification (bert)"
    assert len(lines) == 3
    assert lines[2].startswith("  hint: ")


def test_a_base_that_only_gives_the_configuration_must_be_of_the_architecture_too(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "bert", {"layers.0.w": [1.0, 2.0]}, config=BERT)
    with pytest.raises(CheckpointError, match="the base bert a BertForSequenceClassification"):
        planned(tmp_path, {"one": CONFIG, "two": CONFIG}, base_model="bert")


def test_another_head_or_none_is_the_same_architecture(tmp_path: Path) -> None:
    body = {**BERT, "architectures": ["BertModel"]}
    assert planned(tmp_path, {"base": body, "one": BERT}).warnings == ()


def test_a_model_for_text_fits_the_part_for_text_of_another(tmp_path: Path) -> None:
    whole = {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}
    assert planned(tmp_path, {"base": {"model_type": "gemma3_text"}, "one": whole}).warnings == ()


def test_a_model_without_a_type_is_not_compared(tmp_path: Path) -> None:
    assert planned(tmp_path, {"base": {"architectures": ["Mine"]}, "one": CONFIG}).warnings == ()


# --- labels -----------------------------------------------------------------------------------------------------------


def labelled(*labels: str) -> dict[str, Any]:
    return {**BERT, "id2label": {str(i): label for i, label in enumerate(labels)}}


def planned_heads(folder: Path, configs: Mapping[str, Mapping[str, Any]], **recipe: Any) -> MergePlan:
    for name, config in configs.items():
        tensors = {"bert.w": [1.0], "classifier.weight": [[1.0, 2.0]] * 3, "classifier.bias": [1.0, 2.0, 3.0]}
        write_checkpoint(folder / name, tensors, config=config)
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in configs]
    return build_plan(recipe_over(folder, {"merge_method": "linear", "models": models, **recipe}))


def test_labels_in_another_order_are_refused_with_both_orders(tmp_path: Path) -> None:
    configs = {"one": labelled("yes", "maybe", "no"), "two": labelled("no", "maybe", "yes")}
    with pytest.raises(CheckpointError) as caught:
        planned_heads(tmp_path, configs)
    said = str(caught.value).splitlines()
    assert said[0].startswith("two has its classes in another order than one (id2label): a row of 'classifier.")
    assert said[1:3] == ["  one: yes, maybe, no", "  two: no, maybe, yes"]
    assert said[-2:] == ["exclude:", "- {pattern: 'classifier.*', from: 'one'}"]


def test_classes_of_another_task_are_refused_and_the_block_given_mends_it(tmp_path: Path) -> None:
    configs = {"one": labelled("yes", "maybe", "no"), "two": labelled("cat", "dog", "cow")}
    given = [{"pattern": "bert.*", "from": "two"}]
    with pytest.raises(CheckpointError, match=r"two has other classes than one \(id2label\)") as caught:
        planned_heads(tmp_path, configs, exclude=given)
    block = str(caught.value).partition("exclude:")[2]
    assert block.splitlines() == ["", "- {pattern: 'bert.*', from: 'two'}", "- {pattern: 'classifier.*', from: 'one'}"]


def test_a_head_that_is_not_merged_may_have_any_labels(tmp_path: Path) -> None:
    configs = {"one": labelled("yes", "maybe", "no"), "two": labelled("cat", "dog", "cow")}
    plan = planned_heads(tmp_path, configs, exclude=[{"pattern": "classifier.*", "from": "two"}])
    assert plan.config["id2label"]["0"] == "cat"


@pytest.mark.parametrize(
    "config",
    [
        labelled("YES", "may-be", " no"),
        labelled("LABEL_0", "LABEL_1", "LABEL_2"),
        BERT,
        {**BERT, "label2id": {"no": 2, "may be": 1, "yes": 0}},
        {**BERT, "id2label": ["yes"], "label2id": {"a": "b"}},
        {**BERT, "id2label": {"x": "y"}},
        labelled("one", "two"),
    ],
)
def test_labels_that_mean_the_same_or_say_nothing_are_not_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    configs = {"one": labelled("yes", "may be", "no"), "two": config}
    assert planned_heads(tmp_path, configs).warnings == ()
    assert json.dumps(planned_heads(tmp_path, configs).config["id2label"])
