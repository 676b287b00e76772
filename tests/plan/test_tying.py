"""Heads that are tied to the embedding in some checkpoints, in all of them, or by the configuration alone."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_cli.plan import MergePlan, build_plan
from merge_cli.run import merge
from tests.checkpoints import LLAMA, read_checkpoint, recipe_over, write_checkpoint
from tests.models import batch_for, llama, load

TIED, UNTIED = {**LLAMA, "tie_word_embeddings": True}, {**LLAMA, "tie_word_embeddings": False}
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write(folder: Path, config: Any, embed: float, head: float | None = None) -> None:
    tensors = {EMBED: torch.full((3, 2), embed)}
    if head is not None:
        tensors[HEAD] = torch.full((3, 2), head)
    write_checkpoint(folder, tensors, config=config)


def planned(folder: Path, method: str = "linear", **recipe: Any) -> MergePlan:
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("one", "two")]
    return build_plan(recipe_over(folder, {"merge_method": method, "models": models, **recipe}))


def merged(folder: Path, method: str = "linear", **recipe: Any) -> tuple[dict[str, list[float]], Any]:
    """Return name -> the numbers that its elements have, and what the configuration says of ties."""
    merge(planned(folder, method, **recipe), folder / "out", sync=False)
    found = {name: tensor.unique().tolist() for name, tensor in read_checkpoint(folder / "out").items()}
    return found, json.loads((folder / "out" / "config.json").read_text()).get("tie_word_embeddings")


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_the_embedding_of_a_tied_model_stands_in_for_its_head(tmp_path: Path, order: tuple[str, str]) -> None:
    write(tmp_path / order[0], UNTIED, 1.0, 3.0)
    write(tmp_path / order[1], TIED, 2.0)
    # (1 + 2) / 2, and (3 + 2) / 2.
    assert merged(tmp_path) == ({EMBED: [1.5], HEAD: [2.5]}, False)


def test_a_class_with_a_head_and_no_tensor_for_it_is_tied_whether_its_configuration_says_so_or_not(
    tmp_path: Path,
) -> None:
    write(tmp_path / "one", UNTIED, 1.0, 3.0)
    write(tmp_path / "two", LLAMA, 2.0)
    assert merged(tmp_path)[0] == {EMBED: [1.5], HEAD: [2.5]}


def test_heads_of_their_own_under_a_tied_configuration_untie_it(tmp_path: Path) -> None:
    write(tmp_path / "base", TIED, 1.0, 1.0)
    write(tmp_path / "one", TIED, 2.0, 4.0)
    write(tmp_path / "two", TIED, 2.0, 2.0)
    # 1 + ((2 - 1) + (2 - 1)) / 2, and 1 + ((4 - 1) + (2 - 1)) / 2.
    assert merged(tmp_path, "task_arithmetic", base_model="base") == ({EMBED: [2.0], HEAD: [3.0]}, False)


def test_heads_that_are_stored_beside_an_equal_embedding_everywhere_stay_tied(tmp_path: Path) -> None:
    write(tmp_path / "base", TIED, 1.0, 1.0)
    write(tmp_path / "one", TIED, 2.0, 2.0)
    write(tmp_path / "two", TIED, 4.0)
    assert merged(tmp_path, "task_arithmetic", base_model="base") == ({EMBED: [3.0]}, True)


def test_a_head_that_the_recipe_excludes_is_a_tensor_of_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, TIED, 2.0, 2.0)
    assert merged(tmp_path, exclude=[HEAD]) == ({EMBED: [2.0], HEAD: [2.0]}, False)


def test_tied_models_under_the_configuration_of_an_untied_base_make_a_tied_output(tmp_path: Path) -> None:
    write(tmp_path / "base", UNTIED, 1.0, 3.0)
    write(tmp_path / "one", TIED, 2.0)
    write(tmp_path / "two", TIED, 4.0)
    found, tied = merged(tmp_path, base_model="base")
    assert (found, tied) == ({EMBED: [3.0]}, True)


def test_untied_models_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, UNTIED, 1.0, 3.0)
    assert merged(tmp_path) == ({EMBED: [1.0], HEAD: [3.0]}, False)


def test_the_part_for_text_is_untied_too(tmp_path: Path) -> None:
    config = {**LLAMA, "text_config": {"tie_word_embeddings": True}}
    write(tmp_path / "one", config, 1.0, 3.0)
    write(tmp_path / "two", config, 1.0, 3.0)
    assert planned(tmp_path).config["text_config"] == {"tie_word_embeddings": False}


def test_transformers_computes_with_the_merged_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    untied, tied = llama().eval(), llama(tied=True).eval()
    untied.save_pretrained(tmp_path / "one")
    tied.save_pretrained(tmp_path / "two")
    merge(planned(tmp_path), tmp_path / "out", sync=False)
    wanted = copy.deepcopy(untied)
    others = tied.state_dict()
    wanted.load_state_dict({name: (value + others[name]) / 2 for name, value in untied.state_dict().items()})
    found, info = load(tmp_path / "out")
    assert not info["missing_keys"]
    tokens = batch_for(wanted, 3)["input_ids"]
    torch.testing.assert_close(found.eval()(tokens).logits, wanted(tokens).logits)
