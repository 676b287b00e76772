"""Where a tensor stands among the layers, read off its name and the configuration."""

import pytest

from merge_cli.checkpoint.layers import layer_positions


def positions(config: dict[str, object], *names: str) -> list[float]:
    found = layer_positions(names, config)
    return [found.get(name, 0.0) for name in names]


def stack(pattern: str, height: int) -> list[str]:
    return [pattern.format(i) for i in range(height)]


def test_layers_stand_evenly_between_zero_and_one_and_all_else_at_zero() -> None:
    names = [
        "model.embed_tokens.weight",
        *stack("model.layers.{}.mlp.up.weight", 5),
        "model.norm.weight",
        "lm_head.weight",
    ]
    assert positions({"num_hidden_layers": 5}, *names) == [0, 0, 0.25, 0.5, 0.75, 1, 0, 0]


def test_a_single_layer_takes_the_last_point() -> None:
    assert positions({"num_hidden_layers": 1}, "a.layers.0.w", "a.norm.w") == [1, 0]


def test_encoder_and_decoder_of_a_t5_are_stacks_of_their_own() -> None:
    names = [
        "shared.weight",
        *stack("encoder.block.{}.layer.0.SelfAttention.q.weight", 3),
        "encoder.final_layer_norm.weight",
        *stack("decoder.block.{}.layer.2.DenseReluDense.wi.weight", 2),
    ]
    assert positions({"num_layers": 3, "num_decoder_layers": 2}, *names) == [0, 0, 0.5, 1, 0, 0, 1]


@pytest.mark.parametrize(
    ("pattern", "key"),
    [
        ("bert.encoder.layer.{}.attention.self.query.weight", "num_hidden_layers"),
        ("vit.encoder.layer.{}.intermediate.dense.bias", "num_hidden_layers"),
        ("transformer.h.{}.attn.c_attn.weight", "n_layer"),
        ("h.{}.attn.c_attn.weight", "n_layer"),
        ("distilbert.transformer.layer.{}.ffn.lin1.weight", "n_layers"),
        ("model.encoder.layers.{}.fc1.weight", "encoder_layers"),
    ],
)
def test_families_of_all_kinds_are_understood(pattern: str, key: str) -> None:
    assert positions({key: 3}, *stack(pattern, 3), "bert.pooler.dense.weight") == [0, 0.5, 1, 0]


def test_the_modules_of_a_classifier_are_no_layers() -> None:
    names = [*stack("bert.encoder.layer.{}.w", 3), "classifier.0.weight", "classifier.3.weight", "classifier.3.bias"]
    assert positions({"num_hidden_layers": 3}, *names) == [0, 0.5, 1, 0, 0, 0]


def test_the_modules_of_a_classifier_that_happens_to_be_as_high_are_no_layers() -> None:
    names = [*stack("bert.encoder.layer.{}.w", 5), "classifier.0.weight", "classifier.4.weight"]
    assert positions({"num_hidden_layers": 5}, *names) == [0, 0.25, 0.5, 0.75, 1, 0, 0]


def test_experts_within_a_layer_have_the_position_of_the_layer() -> None:
    names = ["m.layers.0.experts.7.w", "m.layers.2.experts.0.w", "m.layers.2.experts.7.w", "m.layers.1.mlp.w"]
    assert positions({"num_hidden_layers": 3}, *names) == [0, 1, 1, 0.5]


def test_the_parts_of_a_model_for_images_and_text_have_their_own_heights() -> None:
    names = [*stack("vision_tower.layers.{}.w", 2), *stack("language_model.model.layers.{}.w", 3), "projector.1.w"]
    config = {"text_config": {"num_hidden_layers": 3}, "vision_config": {"num_hidden_layers": 2}}
    assert positions(config, *names) == [0, 1, 0, 0.5, 1, 0]


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": 17}, {"num_hidden_layers": "3"}, {"n_layer": None}])
def test_without_a_configuration_that_fits_every_stack_counts(config: dict[str, object]) -> None:
    assert positions(config, *stack("net.{}.weight", 3), *stack("head.{}.weight", 2)) == [0, 0.5, 1, 0, 1]


def test_numbers_that_are_no_part_of_their_own_are_no_layers() -> None:
    assert positions({}, "model.fc1.weight", "conv2d.weight", "layers.0", "0.weight") == [0, 0, 0, 0]


def test_layers_that_are_missing_below_leave_their_place() -> None:
    assert positions({}, "m.layers.2.w", "m.layers.4.w") == [0.5, 1]


def test_a_number_too_long_for_a_layer_is_part_of_a_name() -> None:
    names = ["a.layers.0.w", "a.layers.1.w", f"a.layers.{'9' * 900}.w", "b.1234567890.w", "b.².w"]
    assert positions({}, *names) == [0, 1, 0, 0, 0]
