import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge_cli
from merge_cli import build_plan, load_recipe
from merge_cli.demo import DemoReport, byte_lm, run_demo
from merge_cli.demo.recipes import ADDITION, REMOVAL
from merge_cli.demo.report import spearman
from merge_cli.errors import RecipeError
from merge_cli.stream import with_sample_warnings

_CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yml"))
_CHECKPOINTS = ["base", "expert-1", "expert-2", "expert-3", "joint"]
_FISHERS = ["fisher-base", "fisher-1", "fisher-2", "fisher-3", "fisher-1-at-base"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DemoReport, Path, list[str]]]:
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_HUB_OFFLINE", "1")
    folder, said = tmp_path_factory.mktemp("demo") / "here", []
    yield run_demo(folder, say=said.append, quick=True), folder, said
    patch.undo()


def test_it_leaves_checkpoints_with_tokenizers_that_transformers_loads(
    demo: tuple[DemoReport, Path, list[str]],
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in _CHECKPOINTS:
        model = AutoModelForCausalLM.from_pretrained(demo[1] / name)
        tokens = AutoTokenizer.from_pretrained(demo[1] / name)("def f(x):\n", return_tensors="pt")
        assert model(**tokens).logits.shape == (1, 10, 257)


def test_the_tokenizer_and_the_training_agree_on_the_tokens(demo: tuple[DemoReport, Path, list[str]]) -> None:
    from transformers import AutoTokenizer

    text = "".join(chr(code) for code in range(32, 127)) + "\n  \n\tx"
    tokenizer = AutoTokenizer.from_pretrained(demo[1] / "base")
    assert tokenizer(text)["input_ids"] == byte_lm.encode([text])[0].tolist()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_it_leaves_fishers_with_gradients_of_the_experts(demo: tuple[DemoReport, Path, list[str]]) -> None:
    shapes = {name: values.shape for name, values in load_file(demo[1] / "base" / "model.safetensors").items()}
    for name in _FISHERS:
        fisher = load_file(demo[1] / name / "model.safetensors")
        assert {key: values.shape for key, values in fisher.items()} == shapes
        assert all(bool((values >= 0).all()) for values in fisher.values())
    for i in (1, 2, 3):
        assert (demo[1] / f"fisher-{i}" / "gradient" / "model.safetensors").is_file()


@pytest.mark.parametrize("config", _CONFIGS, ids=lambda path: path.stem)
def test_every_example_recipe_can_be_planned_on_what_it_leaves_without_a_warning(
    config: Path, demo: tuple[DemoReport, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(demo[1])
    plan = with_sample_warnings(build_plan(load_recipe(config)))
    assert plan.tasks
    assert plan.warnings == ()


def test_there_are_example_recipes() -> None:
    assert len(_CONFIGS) > 10


def test_every_merge_is_left_with_its_recipe_and_repeats(
    demo: tuple[DemoReport, Path, list[str]], tmp_path: Path
) -> None:
    for trial in (*ADDITION, *REMOVAL):
        assert (demo[1] / "merged" / trial.name / "merge_manifest.json").is_file()
        merge_cli.merge(build_plan(load_recipe(demo[1] / f"{trial.name}.yml")), tmp_path / trial.name)
        left, again = (
            load_file(folder / trial.name / "model.safetensors") for folder in (demo[1] / "merged", tmp_path)
        )
        assert all(torch.equal(left[name], again[name]) for name in left)
    assert not [path for path in (demo[1] / "merged").iterdir() if path.name.endswith(".grid")]


def test_the_report_holds_every_model_and_its_mismatch(demo: tuple[DemoReport, Path, list[str]]) -> None:
    report, folder, _ = demo
    names = {row.name for row in report.rows}
    assert names >= {*_CHECKPOINTS, *(f"merged/{trial.name}" for trial in ADDITION)}
    assert names >= {f"merged/{trial.name}_tuned" for trial in ADDITION if trial.grid}
    assert all(row.mismatch is not None and row.mismatch > 0 for row in report.rows)
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report.to_json()))


def test_tuning_chooses_the_least_loss_on_validation_text(demo: tuple[DemoReport, Path, list[str]]) -> None:
    rows = {row.name: row for row in demo[0].rows}
    for trial, curve in zip([trial for trial in ADDITION if trial.grid], demo[0].curves, strict=True):
        best = min(curve.points, key=lambda point: point[1])[0]
        assert rows[f"merged/{trial.name}_tuned"].chosen.endswith(f" {best:g}")


def test_its_tables_are_rectangular(demo: tuple[DemoReport, Path, list[str]]) -> None:
    for table in demo[0].tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.headings)}


def test_it_says_what_it_does(demo: tuple[DemoReport, Path, list[str]]) -> None:
    said = "\n".join(demo[2])
    assert "merge-cli merge gradient_matching.yml merged/gradient_matching" in said
    assert "beat" not in "\n".join([said, *demo[0].notes]).lower()


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(RecipeError, match="not an empty folder"):
        run_demo(tmp_path, say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 1], [1, 2], 0.0),
        ([1, 2, 2, 3], [1, 2, 2, 3], 1.0),
    ],
)
def test_rank_correlation(left: list[float], right: list[float], expected: float) -> None:
    assert spearman(left, right) == pytest.approx(expected)
