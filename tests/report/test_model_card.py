"""The model card."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from merge_cli.checkpoint import Checkpoint
from merge_cli.plan import MergePlan, build_plan
from merge_cli.report import MergeReport, model_card
from tests.checkpoints import recipe_over, write_checkpoint
from tests.report.conftest import RECIPE


def front_matter(card: str) -> dict[str, Any]:
    begin, front, _ = card.split("---\n", 2)
    assert begin == ""
    content = yaml.safe_load(front)
    assert isinstance(content, dict)
    return content


def card_of(plan: MergePlan) -> str:
    return model_card(plan, "merged", tool="merge-cli 1")


def named(plan: MergePlan, labels: dict[str, str]) -> MergePlan:
    """Return the plan with inputs that the recipe calls otherwise."""

    def relabelled(checkpoint: Checkpoint) -> Checkpoint:
        return replace(checkpoint, label=labels.get(checkpoint.label, checkpoint.label))

    return replace(plan, inputs=tuple(replace(each, checkpoint=relabelled(each.checkpoint)) for each in plan.inputs))


def test_its_front_matter_is_what_the_hub_understands(plan: MergePlan) -> None:
    labels = {"base": "org/base", "one": "org/one@v2", "two": "org/one@v1"}
    assert front_matter(card_of(named(plan, labels))) == {
        "base_model": ["org/base", "org/one"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "merge-cli", "ties"],
    }


def test_folders_of_this_machine_are_no_base_models(plan: MergePlan) -> None:
    assert "base_model" not in front_matter(card_of(plan))
    labels = {"base": "./base", "one": "/models/one", "two": "../up/two"}
    assert "base_model" not in front_matter(card_of(named(plan, labels)))


def test_a_local_folder_that_looks_like_a_hub_id_is_none(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "org" / "one", {"w": [1.0]})
    plan = build_plan(recipe_over(tmp_path, {"merge_method": "passthrough", "models": [{"model": "org/one"}]}))
    assert "base_model" not in front_matter(card_of(plan))
    assert "A merge of 1 model by `passthrough`" in card_of(plan)


def test_it_says_what_was_done_and_holds_the_recipe(report: MergeReport, folder: Path) -> None:
    card = (folder / "out" / "README.md").read_text()
    assert "# out\n" in card
    assert "A merge of 2 models by `ties`" in card
    assert "2306.01708" in card
    assert f"```yaml\n{RECIPE.strip()}\n```" in card
    assert "2 tensors merged, 2 copied" in card
    assert "| model 0 | `one` |" in card


def test_what_was_changed_on_the_command_line_is_said_beside_the_recipe(report: MergeReport, folder: Path) -> None:
    card = (folder / "out" / "README.md").read_text()
    assert "Changed with `--set`:\n\n- `parameters.lambda=0.5`\n" in card


def test_a_name_with_odd_characters_is_still_yaml(plan: MergePlan) -> None:
    assert front_matter(model_card(plan, "a: [b] 'c'", tool="x"))["tags"]
