"""Checkpoints that have the same tensors under other names, which are merged as one where that is certain."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge_cli.checkpoint import model_identity, open_checkpoint
from merge_cli.errors import CheckpointError
from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import merge
from tests.checkpoints import read_checkpoint, recipe_over, write_checkpoint
from tests.plan.test_matching import merged, planned, refused

BODY = {
    "embeddings.word.weight": (7, 2),
    "embeddings.LayerNorm.weight": (2,),
    "embeddings.LayerNorm.bias": (2,),
    **{f"encoder.layer.{i}.{part}.weight": (2, 3) for i in range(2) for part in ("query", "key")},
}
HEAD = {"classifier.weight": (4, 2), "classifier.bias": (4,)}


def made(shapes: dict[str, tuple[int, ...]], value: float = 0.0) -> dict[str, Tensor]:
    return {name: torch.full(shape, value) for name, shape in shapes.items()}


def under(prefix: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in shapes.items()}


def old(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    pairs = (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    for new, former in pairs:
        shapes = {name.replace(new, former): shape for name, shape in shapes.items()}
    return shapes


def inputs_of(plan: MergePlan, name: str) -> list[str]:
    """Return the names that the files have for what becomes one tensor: in the base, then in the models."""
    task = next(task for task in plan.tasks if task.target.name == name)
    assert task.base is not None
    return [tensor.name for tensor in (task.base, *task.models)]


def test_a_base_that_was_saved_without_its_head_gets_the_prefix_of_the_models(tmp_path: Path) -> None:
    model = made(under("bert.", BODY) | HEAD)
    exclude = [{"pattern": "classifier.*", "from": "one"}]
    plan = planned(tmp_path, {"base": made(BODY), "one": model, "two": model}, exclude=exclude)
    assert set(merged(plan)) == set(under("bert.", BODY))
    name = "encoder.layer.0.query.weight"
    assert inputs_of(plan, f"bert.{name}") == [name, f"bert.{name}", f"bert.{name}"]
    assert plan.notes[0] == "base: 'bert.' put before the names of 7 tensors, as others have them"


def test_a_model_that_was_saved_without_its_head_gets_the_prefix_of_the_base(tmp_path: Path) -> None:
    checkpoints = {"base": made(under("bert.", BODY) | HEAD), "one": made(BODY)}
    plan = planned(tmp_path, checkpoints, exclude=["classifier.*"])
    assert set(merged(plan)) == set(under("bert.", BODY))
    assert plan.notes == ("one: 'bert.' put before the names of 7 tensors, as others have them",)


@pytest.mark.parametrize("prefix", ["model.", "net.", "student.module.", "base_model."])
@pytest.mark.parametrize("wrapped", ["base", "one"])
def test_what_stands_before_every_name_of_one_checkpoint_is_taken_off(
    wrapped: str, prefix: str, tmp_path: Path
) -> None:
    shapes = under("model.", BODY) | {"lm_head.weight": (7, 2)}
    checkpoints = {name: made(under(prefix, shapes) if name == wrapped else shapes) for name in ("base", "one", "two")}
    plan = planned(tmp_path, checkpoints)
    assert set(merged(plan)) == set(shapes)
    assert plan.notes == (f"{wrapped}: '{prefix}' taken off the names of 8 tensors, as others have them",)


@pytest.mark.parametrize("wrapped", ["base", "one"])
@pytest.mark.parametrize("part", ["module.", "base_model.model."])
def test_a_wrapper_around_a_part_of_one_model_is_taken_out_of_its_names(
    wrapped: str, part: str, tmp_path: Path
) -> None:
    shapes = BODY | HEAD
    inner = {name.replace("encoder.", f"encoder.{part}"): shape for name, shape in shapes.items()}
    plan = planned(tmp_path, {name: made(inner if name == wrapped else shapes) for name in ("base", "one", "two")})
    assert set(merged(plan)) == set(shapes)
    assert plan.notes == (f"{wrapped}: a wrapper's part taken out of the names of 4 tensors",)


def test_a_part_that_all_models_call_module_keeps_its_name(tmp_path: Path) -> None:
    shapes = {"module.a": (2,), "top.module.b": (3,), "c": (2,)}
    plan = planned(tmp_path, {"base": made(shapes), "one": made(shapes)})
    assert set(merged(plan)) == set(shapes)


def test_a_prefix_that_stands_there_twice_is_taken_off_once(tmp_path: Path) -> None:
    shapes = under("model.", BODY)
    twice = under("model.", shapes) | {"lm_head.weight": (7, 2)}
    checkpoints = {"base": made(twice), "one": made(shapes | {"lm_head.weight": (7, 2)})}
    plan = planned(tmp_path, checkpoints)
    assert set(merged(plan)) == set(shapes) | {"lm_head.weight"}


@pytest.mark.parametrize("former", ["base", "one"])
def test_old_names_of_normalisations_are_those_of_today(former: str, tmp_path: Path) -> None:
    checkpoints = {name: made(old(BODY) if name == former else BODY) for name in ("base", "one", "two")}
    plan = planned(tmp_path, checkpoints)
    assert set(merged(plan)) == set(BODY)
    assert plan.notes == (f"{former}: gamma and beta of LayerNorm are called weight and bias, as others call them",)


def test_old_names_that_all_have_stay(tmp_path: Path) -> None:
    plan = planned(tmp_path, {"base": made(old(BODY)), "one": made(old(BODY))})
    assert set(merged(plan)) == set(old(BODY))
    assert plan.notes == ()


def test_old_names_and_a_prefix_are_seen_through_together(tmp_path: Path) -> None:
    checkpoints = {"base": made(old(BODY)), "one": made(under("bert.", BODY) | HEAD)}
    plan = planned(tmp_path, checkpoints, exclude=[{"pattern": "classifier.*", "drop": True}])
    assert set(merged(plan)) == set(under("bert.", BODY))
    assert inputs_of(plan, "bert.embeddings.LayerNorm.bias")[0] == "embeddings.LayerNorm.beta"


def test_a_vocabulary_that_was_extended_is_told_by_its_name_in_the_output(tmp_path: Path) -> None:
    extended = under("bert.", BODY | {"embeddings.word.weight": (9, 2)})
    said = refused(CheckpointError, tmp_path, {"base": made(BODY), "one": made(extended | HEAD)})
    assert "  bert.embeddings.word.weight is 7 x 2 in base, 9 x 2 in one" in said


@pytest.mark.parametrize(
    ("base", "one", "told"),
    [
        # Two prefixes would do.
        (BODY, under("encoder.", BODY) | under("decoder.", BODY), "'decoder.'"),
        # The shapes are those of another model.
        (BODY, {f"bert.{name}": (*shape, 5) for name, shape in BODY.items()}, "'bert.'"),
    ],
)
def test_a_prefix_that_is_not_certain_is_only_named(
    base: dict[str, tuple[int, ...]], one: dict[str, tuple[int, ...]], told: str, tmp_path: Path
) -> None:
    said = refused(CheckpointError, tmp_path, {"base": made(base), "one": made(one)})
    assert f"names in one seem to have {told} before those in base" in said


def test_a_single_tensor_that_ends_like_another_is_another(tmp_path: Path) -> None:
    checkpoints = {"base": made(BODY | {"bias": (3,)}), "one": made(BODY | {"cls.bias": (3,)})}
    said = refused(CheckpointError, tmp_path, checkpoints)
    assert "bias is missing in one" in said
    assert "cls.bias is missing in base" in said


def merged_by_fisher(folder: Path, names: dict[str, dict[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Merge two models that have the same numbers whatever their names."""
    for number, (model, shapes) in enumerate(names.items()):
        random = torch.Generator().manual_seed(number)
        for kind in ("", "fisher-"):
            tensors = {name: torch.rand(shape, generator=random) for name, shape in shapes.items()}
            said = {"kind": "fisher", "reduction": "mean", "train_examples": "1"} if kind else {}
            if kind:
                said["model_identity"] = model_identity(open_checkpoint(folder / model))
            write_checkpoint(folder / f"{kind}{model}", tensors, metadata=said)
    models = [{"model": name, "fisher": f"fisher-{name}"} for name in names]
    plan = build_plan(recipe_over(folder, {"merge_method": "fisher", "models": models}))
    merge(plan, folder / "out", sync=False)
    return read_checkpoint(folder / "out")


def test_a_fisher_fits_its_model_under_the_names_of_its_file(tmp_path: Path) -> None:
    plain = merged_by_fisher(tmp_path / "plain", {"one": BODY, "two": BODY})
    other = merged_by_fisher(tmp_path / "other", {"one": old(BODY), "two": under("module.", under("bert.", BODY))})
    assert set(other) == set(plain)
    assert all(torch.equal(other[name], plain[name]) for name in plain)
