"""What comes out, from small numbers that can be checked by hand, and from the oracle."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_cli.plan import build_plan
from merge_cli.report import MergeReport
from merge_cli.run import merge
from tests import oracle
from tests.checkpoints import read_checkpoint, recipe_over, write_checkpoint

Tensors = dict[str, Tensor | Sequence[Any]]


def merged(folder: Path, checkpoints: dict[str, Tensors], **recipe: Any) -> dict[str, Tensor]:
    """Merge every checkpoint that is neither the base nor a Fisher; weights are 1 unless ``models`` is given."""
    return _merged(folder, checkpoints, **recipe)[0]


def _merged(
    folder: Path, checkpoints: dict[str, Tensors], *, options: dict[str, Any] | None = None, **recipe: Any
) -> tuple[dict[str, Tensor], MergeReport]:
    for name, tensors in checkpoints.items():
        write_checkpoint(folder / name, tensors)
    others = [name for name in checkpoints if name != "base" and "-" not in name]
    content: dict[str, Any] = {"models": [{"model": name, "parameters": {"weight": 1}} for name in others]}
    if "base" in checkpoints:
        content["base_model"] = "base"
    report = merge(
        build_plan(recipe_over(folder, {**content, **recipe}), **(options or {})), folder / "out", sync=False
    )
    return read_checkpoint(folder / "out"), report


def weighted(*pairs: tuple[str, float], **more: Any) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": {"weight": weight, **more}} for name, weight in pairs]


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_an_average(tmp_path: Path) -> None:
    models = weighted(("one", 1), ("two", 3))
    found = merged(
        tmp_path, {"one": {"w": [1.0, -2.0]}, "two": {"w": [5.0, 2.0]}}, merge_method="linear", models=models
    )
    assert found["w"].tolist() == [4, 1]


def test_a_base_that_is_listed_is_averaged_and_one_that_is_not_is_not(tmp_path: Path) -> None:
    checkpoints: dict[str, Tensors] = {"base": {"w": [100.0]}, "one": {"w": [1.0]}, "two": {"w": [3.0]}}
    assert merged(tmp_path / "a", checkpoints, merge_method="linear")["w"].tolist() == [2]
    models = weighted(("base", 1), ("one", 1))
    assert merged(tmp_path / "b", checkpoints, merge_method="linear", models=models)["w"].tolist() == [50.5]


def test_an_average_with_a_base_that_is_listed_keeps_it_behind_preparing_steps(tmp_path: Path) -> None:
    # Of one's task vector (4, -1) only the larger entry is kept; half of what is left is the average.
    found = merged(
        tmp_path,
        {"base": {"w": [10.0, 20.0]}, "one": {"w": [14.0, 19.0]}},
        merge_method="linear",
        models=weighted(("base", 1), ("one", 1)),
        prepare={"keep_largest": {"density": 0.5}},
    )
    assert found["w"].tolist() == [12, 20]


def test_task_vectors_added_and_subtracted(tmp_path: Path) -> None:
    found = merged(
        tmp_path,
        {"base": {"w": [1.0, 1.0]}, "one": {"w": [3.0, 1.0]}, "two": {"w": [1.0, 5.0]}},
        merge_method="task_arithmetic",
        models=weighted(("one", 1), ("two", -0.5)),
        parameters={"lambda": 2},
    )
    assert found["w"].tolist() == [5, -3]


def test_ties_trims_elects_and_averages(tmp_path: Path) -> None:
    # Of each task vector half is kept: (4, 0, -3, 0), (2, 0, 5, 0). The signs elected are +, +, +, +.
    found = merged(
        tmp_path,
        {"base": {"w": [0.0] * 4}, "one": {"w": [4.0, 1.0, -3.0, 2.0]}, "two": {"w": [2.0, -1.0, 5.0, 0.5]}},
        merge_method="ties",
        models=weighted(("one", 1), ("two", 1), density=0.5),
    )
    assert found["w"].tolist() == [3, 0, 5, 0]


def test_ties_over_the_whole_model_keeps_what_is_large_there(tmp_path: Path) -> None:
    checkpoints: dict[str, Tensors] = {
        "base": {"a": [0.0, 0.0], "b": [0.0, 0.0]},
        "one": {"a": [1.0, 2.0], "b": [3.0, 4.0]},
    }
    models = weighted(("one", 1), density=0.5)
    found = merged(tmp_path, checkpoints, merge_method="ties", models=models, parameters={"trim": "model"})
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [0, 0], "b": [3, 4]}


def test_slerp_between_two_vectors_at_a_right_angle(tmp_path: Path) -> None:
    # sin(45°) of each; as vectors the tensors are (1, 0, 0, 0) and (0, 0, 0, 1).
    first, second = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    parameters = {"t": 0.5}
    found = merged(tmp_path, {"base": {"w": first}, "one": {"w": second}}, merge_method="slerp", parameters=parameters)
    assert found["w"].flatten().tolist() == pytest.approx([math.sqrt(0.5), 0, 0, math.sqrt(0.5)])


def test_fisher_weights_each_element(tmp_path: Path) -> None:
    models = [
        {"model": "one", "fisher": "fisher-one", "parameters": {"weight": 1}},
        {"model": "two", "fisher": "fisher-two", "parameters": {"weight": 1}},
    ]
    checkpoints: dict[str, Tensors] = {
        "one": {"w": [0.0, 8.0]}, "two": {"w": [4.0, 0.0]},
        "fisher-one": {"w": [3.0, 1.0]}, "fisher-two": {"w": [1.0, 3.0]},
    }  # fmt: skip
    parameters = {"normalize_fisher": False, "fisher_floor": 0}
    found = merged(tmp_path, checkpoints, merge_method="fisher", models=models, parameters=parameters)
    assert found["w"].tolist() == [1, 2]


def test_gradient_matching_with_the_numbers_of_examples_in_the_files(tmp_path: Path) -> None:
    # H0 = 2 everywhere (prior only), H1 = N F = 2 * (1, 3) = (2, 6), step = (2 + H1) / (2 + H1) * delta.
    # With a second model of H2 = (4, 0): (2 + 2) / (2 + 2 + 4) * 8 + (2 + 4) / 8 * 4 = 7, and (8 * 8 + 2 * 4) / 8 = 9.
    checkpoints: dict[str, Tensors] = {"base": {"w": [0.0, 0.0]}, "one": {"w": [8.0, 8.0]}, "two": {"w": [4.0, 4.0]}}
    write_checkpoint(tmp_path / "fisher-one", {"w": [1.0, 3.0]}, config=None, metadata={"train_examples": "2"})
    write_checkpoint(tmp_path / "fisher-two", {"w": [1.0, 0.0]}, config=None, metadata={"train_examples": "4"})
    models = [{"model": name, "fisher": f"fisher-{name}", "parameters": {"weight": 1}} for name in ("one", "two")]
    parameters = {"prior_precision": 2, "anchor": "base", "curvature_floor": 0}
    found = merged(tmp_path, checkpoints, merge_method="gradient_matching", models=models, parameters=parameters)
    assert found["w"].tolist() == [7, 9]


def test_passthrough_copies_bytes_and_scales(tmp_path: Path) -> None:
    bits = torch.tensor([1, 127, 32897, 16256], dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    found = merged(tmp_path / "a", {"one": {"w": bits}}, merge_method="passthrough", models=[{"model": "one"}])
    assert torch.equal(found["w"].view(torch.int16), bits.view(torch.int16))
    models = [{"model": "one", "parameters": {"scale": [{"filter": "v", "value": 0.5}, {"value": 1}]}}]
    found = merged(tmp_path / "b", {"one": {"w": [3.0], "v": [3.0]}}, merge_method="passthrough", models=models)
    assert (found["w"].item(), found["v"].item()) == (3, 1.5)


def test_a_list_over_the_layers_sets_what_lies_outside_of_them_by_its_first_point(tmp_path: Path) -> None:
    names = ["embed", "layers.0.w", "layers.1.w", "layers.2.w", "lm_head"]
    config = {"num_hidden_layers": 3}
    for name, value in (("base", 0.0), ("one", 8.0)):
        write_checkpoint(tmp_path / name, {tensor: [value] for tensor in names}, config=config)
    models = [{"model": "one", "parameters": {"weight": [0.5, 1]}}]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    merge(build_plan(recipe_over(tmp_path, recipe)), tmp_path / "out", sync=False)
    found = {name: tensor.item() for name, tensor in read_checkpoint(tmp_path / "out").items()}
    assert found == {"embed": 4, "layers.0.w": 4, "layers.1.w": 6, "layers.2.w": 8, "lm_head": 4}


# --- what is not merged, and shapes at the edge -----------------------------------------------------------------------


def test_integers_booleans_and_excluded_tensors_are_copied_bit_by_bit(tmp_path: Path) -> None:
    base: Tensors = {
        "w": [1.0],
        "ids": torch.tensor([2**62 + 1, -3]),
        "small": torch.tensor([[200, 7]], dtype=torch.uint8),
        "flags": torch.tensor([True, False, True]),
        "head": torch.tensor([math.pi], dtype=torch.float64),
    }
    one: Tensors = {**base, "w": [3.0], "ids": torch.tensor([0, 0]), "head": torch.tensor([1.0], dtype=torch.float64)}
    found = merged(tmp_path, {"base": base, "one": one}, merge_method="task_arithmetic", exclude=["head"])
    assert found["w"].item() == 3
    for name in ("ids", "small", "flags", "head"):
        assert torch.equal(found[name], torch.as_tensor(base[name]))
        assert found[name].dtype == torch.as_tensor(base[name]).dtype


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("sign", ["int", "uint"])
def test_integers_of_every_width_keep_their_bits(tmp_path: Path, bits: int, sign: str) -> None:
    raw = torch.arange(256, dtype=torch.uint8).flip(0)
    tensor = raw.view(getattr(torch, f"{sign}{bits}"))
    checkpoints: dict[str, Tensors] = {"base": {"w": [1.0], "n": tensor}, "one": {"w": [2.0], "n": tensor}}
    found = merged(tmp_path, checkpoints, merge_method="task_arithmetic", dtype="bfloat16")["n"]
    assert found.dtype == tensor.dtype
    assert torch.equal(found.view(torch.uint8), raw)


def test_tensors_without_elements_or_dimensions_are_merged_too(tmp_path: Path) -> None:
    base: Tensors = {"none": torch.zeros(0, 3), "scalar": torch.tensor(1.0), "one": torch.ones(1, 1, 1)}
    other: Tensors = {"none": torch.zeros(0, 3), "scalar": torch.tensor(3.0), "one": torch.full((1, 1, 1), 5.0)}
    for method, more in (("ties", {}), ("slerp", {"parameters": {"t": 1}}), ("dare_ties", {}), ("task_arithmetic", {})):
        found = merged(tmp_path / method, {"base": base, "one": other}, merge_method=method, **more)
        assert found["none"].shape == (0, 3)
        assert (found["scalar"].item(), found["scalar"].shape) == (3, ())
        assert (found["one"].item(), found["one"].shape) == (5, (1, 1, 1))


@pytest.mark.parametrize("steps", [{}, {"keep_largest": {"density": 0.5, "scope": "model"}}])
@pytest.mark.parametrize("trim", ["tensor", "model"])
def test_where_nothing_is_left_to_merge_the_rest_is_copied(tmp_path: Path, steps: dict[str, Any], trim: str) -> None:
    checkpoints: dict[str, Tensors] = {
        "base": {"w": [1.0], "ids": torch.arange(3)},
        "one": {"w": [2.0], "ids": torch.arange(3)},
    }
    found = merged(tmp_path, checkpoints, merge_method="ties", exclude=["w"], prepare=steps, parameters={"trim": trim})
    assert found["w"].item() == 1


@pytest.mark.parametrize("trim", ["tensor", "model"])
def test_where_all_that_is_merged_is_empty_the_output_is_too(tmp_path: Path, trim: str) -> None:
    empty: Tensors = {"w": torch.zeros(0), "v": torch.zeros(3, 0)}
    found = merged(tmp_path, {"base": empty, "one": empty}, merge_method="ties", parameters={"trim": trim})
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {"w": (0,), "v": (3, 0)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_float_is_read_computed_in_float32_and_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    # 1 + 1/8 and 3 are exact in all of them; 2/3 of the way between is 2.375, which rounds to 2.5 with 3 bits.
    one, two = torch.tensor([1.125]).to(dtype), torch.tensor([3.0]).to(dtype)
    models = weighted(("one", 1), ("two", 2))
    found = merged(tmp_path, {"one": {"w": one}, "two": {"w": two}}, merge_method="linear", models=models)
    assert found["w"].dtype == dtype
    assert found["w"].float().item() == (2.5 if dtype == torch.float8_e4m3fn else 2.375)


def test_sums_of_many_small_steps_are_not_lost_in_bfloat16(tmp_path: Path) -> None:
    # 256 + 1 is 256 in bfloat16, so that adding one by one would stay there; the sum of the deltas is 8.
    checkpoints: dict[str, Tensors] = {"base": {"w": torch.tensor([256.0], dtype=torch.bfloat16)}}
    checkpoints |= {f"m{i}": {"w": torch.tensor([257.0])} for i in range(8)}
    found = merged(tmp_path, checkpoints, merge_method="task_arithmetic", out_dtype="bfloat16")
    assert found["w"].float().item() == 264


# --- with the oracle --------------------------------------------------------------------------------------------------


def _eighths(seed: int, numel: int) -> list[float]:
    source = torch.Generator().manual_seed(seed)
    return (torch.randint(-40, 40, (numel,), generator=source) / 8).tolist()


SIZES = {"layers.0.w": 37, "layers.1.w": 64, "head": 5}


def test_dropping_then_keeping_the_largest_then_trimming_over_the_model(tmp_path: Path) -> None:
    base = {name: _eighths(i, numel) for i, (name, numel) in enumerate(SIZES.items())}
    models = [{name: _eighths(10 * m + i, n) for i, (name, n) in enumerate(SIZES.items())} for m in (1, 2)]
    checkpoints: dict[str, Tensors] = {"base": dict(base), "one": dict(models[0]), "two": dict(models[1])}
    found = merged(
        tmp_path,
        checkpoints,
        merge_method="ties",
        models=weighted(("one", 1), ("two", 1), density=0.5),
        parameters={"trim": "model", "lambda": 0.5},
        prepare={"dare": {"drop_rate": 0.5}, "keep_largest": {"density": 0.25, "scope": "model"}},
        seed=11,
    )
    deltas: list[dict[str, list[float]]] = [{}, {}]
    for name, numel in SIZES.items():
        vectors = oracle.task_vectors(base[name], [model[name] for model in models])
        # The first step is stage 0; each model of each tensor has a mask of its own.
        masks = [oracle.keep_mask([11, 0, m, name], numel, 0.5) for m in range(2)]
        for m, dropped in enumerate(oracle.dare(vectors, masks, [0.5, 0.5])):
            deltas[m][name] = dropped
    kept = oracle.keep_largest(deltas, [0.25, 0.25], scope="model")
    wanted = oracle.ties(base, kept, [1, 1], [0.5, 0.5], scale=0.5, trim="model")
    assert {name: found[name].tolist() for name in SIZES} == wanted


def test_the_mask_of_a_method_is_not_that_of_a_step_before_it(tmp_path: Path) -> None:
    numel = 4096
    base, one = [0.0] * numel, [1.0] * numel
    found = merged(
        tmp_path,
        {"base": {"w": base}, "one": {"w": one}},
        merge_method="dare_linear",
        models=weighted(("one", 1), density=0.5),
        prepare={"dare": {"drop_rate": 0.5}},
    )
    masks = [oracle.keep_mask([0, stage, 0, "w"], numel, 0.5) for stage in (0, 1)]
    assert found["w"].tolist() == [4.0 * a * b for a, b in zip(*masks, strict=True)]
    # A quarter survives both, within five standard deviations.
    assert abs((found["w"] > 0).float().mean().item() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / numel)


def test_steps_are_applied_in_the_order_of_the_recipe(tmp_path: Path) -> None:
    numel = 64
    base, one = [0.0] * numel, [float(i + 1) for i in range(numel)]
    mask = oracle.keep_mask([0, 1, 0, "w"], numel, 0.5)
    found = merged(
        tmp_path,
        {"base": {"w": base}, "one": {"w": one}},
        merge_method="task_arithmetic",
        prepare={"keep_largest": {"density": 0.25}, "dare": {"drop_rate": 0.5, "rescale": False}},
    )
    assert found["w"].tolist() == [x * keep if x > 48 else 0 for x, keep in zip(one, mask, strict=True)]


def test_a_longer_tensor_agrees_with_the_oracle_across_its_blocks(tmp_path: Path) -> None:
    numel = 40_003
    base, one, two = (_eighths(seed, numel) for seed in (1, 2, 3))
    found = merged(
        tmp_path,
        {"base": {"w": base}, "one": {"w": one}, "two": {"w": two}},
        merge_method="dare_ties",
        models=weighted(("one", 1), ("two", 0.5), density=0.5),
        options={"threads": 2},
    )
    masks = [oracle.keep_mask([0, 0, m, "w"], numel, 0.5) for m in range(2)]
    wanted = oracle.dare_ties(base, oracle.task_vectors(base, [one, two]), masks, [1, 0.5], [0.5, 0.5])
    assert found["w"].tolist() == wanted


def test_what_is_counted_on_the_way_is_reported(tmp_path: Path) -> None:
    # H0 = 1, H1 = (4, 0): removing leaves a precision of (-3, 1), of which the first is below a tenth of H0.
    write_checkpoint(tmp_path / "fisher-one", {"w": [4.0, 0.0]}, config=None, metadata={"train_examples": "1"})
    _, report = _merged(
        tmp_path,
        {"base": {"w": [0.0, 0.0]}, "one": {"w": [1.0, 1.0]}},
        merge_method="gradient_matching",
        models=[{"model": "one", "fisher": "fisher-one", "parameters": {"weight": -1}}],
        parameters={"prior_precision": 1, "anchor": "base", "curvature_floor": 0},
    )
    assert report.counts == {"clipped": 1}
    assert (report.merged, report.copied, report.models, report.parameters) == (1, 0, 1, 2)
