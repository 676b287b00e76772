"""Several merged models of one recipe in one pass: each is what a merge of its own gives, in one output."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from merge_cli import Replay, build_plan, merge, verify
from merge_cli.checkpoint import Files
from merge_cli.errors import RecipeError, ResourceError, VerificationError
from merge_cli.stream import diagnose
from tests.checkpoints import read_checkpoint, recipe_over, write_checkpoint
from tests.crash.cases import RECIPES, check_sums, contents, planned, shown, write_models
from tests.crash.seam import Seam, StopAfter, Stopped, is_block
from tests.models import llama

LAMBDAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3, -1.0)
SWEEP = {f"lambda={value}": {"lambda": value} for value in LAMBDAS}
ARITHMETIC = RECIPES["task_arithmetic"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of checkpoints that nobody writes into."""
    return write_models(tmp_path_factory.mktemp("models"))


class CountingReads(Files):
    """Counts the bytes that are read from files of weights."""

    def __init__(self) -> None:
        self.read, self.watched, self.guard = 0, set[int](), threading.Lock()

    def open_read(self, path: Path) -> int:
        fd = super().open_read(path)
        with self.guard:
            self.watched |= {fd} if path.suffix == ".safetensors" else set()
        return fd

    def close(self, fd: int) -> None:
        with self.guard:
            self.watched.discard(fd)
        super().close(fd)

    def pread(self, fd: int, view: memoryview, offset: int) -> int:
        count = super().pread(fd, view, offset)
        with self.guard:
            self.read += count if fd in self.watched else 0
        return count


def weights(folder: Path) -> dict[str, bytes]:
    """Return the files of weights below a folder."""
    return {name: content for name, content in contents(folder).items() if name.endswith(".safetensors")}


def alone(models: Path, recipe: Mapping[str, Any], given: Mapping[str, Any], out: Path, **options: Any) -> Path:
    """Merge with some parameters changed in the recipe itself."""
    parameters = {**recipe.get("parameters", {}), **given}
    own = [
        {**each, "parameters": {key: given.get(key, value) for key, value in each.get("parameters", {}).items()}}
        for each in recipe["models"]
    ]
    merge(planned(models, {**recipe, "parameters": parameters, "models": own}), out, **options)
    return out


def check_equal(models: Path, recipe: Mapping[str, Any], variants: Mapping[str, Mapping[str, Any]], tmp: Path) -> Path:
    """Fail unless each variant has the weights that a merge of its own gives; return the output of all."""
    out = tmp / "all"
    merge(planned(models, recipe, variants=variants), out, sync=False)
    for number, (name, given) in enumerate(variants.items()):
        single = alone(models, recipe, given, tmp / str(number), sync=False)
        assert weights(out / name) == weights(single)
    return out


# --- the same bytes -------------------------------------------------------------------------------------------------


def test_eight_lambdas_in_one_pass_give_the_bytes_of_eight_merges_and_read_the_inputs_once(
    models: Path, tmp_path: Path
) -> None:
    plan, files, single = planned(models, ARITHMETIC, variants=SWEEP, threads=1), CountingReads(), CountingReads()
    merge(plan, tmp_path / "all", files=files, input_digests=False)
    one = planned(models, ARITHMETIC, threads=1)
    merge(one, tmp_path / "one", files=single, input_digests=False)
    assert files.read == single.read > plan.read_bytes
    for number, (name, given) in enumerate(SWEEP.items()):
        out = alone(models, ARITHMETIC, given, tmp_path / str(number))
        assert weights(tmp_path / "all" / name) == weights(out)
    assert len({content for name in SWEEP for content in weights(tmp_path / "all" / name).values()}) == len(SWEEP)


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("ties of each tensor", {"a": {"density": 0.4}, "b": {"density": 0.9}, "c": {"density": 0.4, "lambda": 0.5}}),
        ("ties of the model", {"a": {"density": 0.2}, "b": {"density": 0.7}, "c": {"trim": "tensor"}}),
        ("dare_ties", {"a": {"density": 0.3}, "b": {"lambda": 2.0}}),
        (
            "slerp",
            {
                "a": {"t": 0.3},
                "b": {"t": [0.0, 1.0]},
                "c": {"t": [{"filter": "layers.0", "value": 1.0}, {"value": 0.25}]},
            },
        ),
        ("fisher", {"a": {"fisher_floor": 0.0}, "b": {"fisher_floor": 0.5, "weight": 2.0}}),
        ("gradient_matching", {"a": {"anchor": "base"}, "b": {"anchor": "measured"}, "c": {"prior_precision": "auto"}}),
        ("linear", {"a": {"weight": 0.25}, "b": {"normalize": False}}),
        ("passthrough", {"a": {"scale": 1.0}, "b": {"scale": 0.5}}),
        ("steps", {"a": {"density": 0.5}, "b": {"density": 1.0}}),
    ],
)
def test_variants_have_the_weights_that_merges_of_their_own_give(
    models: Path, tmp_path: Path, name: str, variants: dict[str, dict[str, Any]]
) -> None:
    check_equal(models, RECIPES[name], variants, tmp_path)


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3, "memory": 2**21}, {"threads": 2, "memory": 2**29}])
def test_threads_memory_and_processes_do_not_change_a_byte(
    models: Path, tmp_path: Path, options: dict[str, int]
) -> None:
    variants = {"a": {"density": 0.4}, "b": {"density": 0.9}}
    out = check_equal(models, RECIPES["ties of each tensor"], variants, tmp_path)
    plan = planned(models, RECIPES["ties of each tensor"], variants=variants, **options)
    merge(plan, tmp_path / "other" / "all", processes=True)
    assert shown(tmp_path / "other" / "all") == shown(out)


@pytest.mark.parametrize("name", ["ties of the model", "ties of each tensor"])
def test_fresh_processes_know_what_was_measured_for_each_variant(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    variants = {"a": {"density": 0.4}, "b": {"density": 0.9}, "c": {"density": 0.4, "lambda": 0.5}}
    merge(planned(models, RECIPES[name], variants=variants, threads=1), tmp_path / "one" / "all")
    monkeypatch.setenv("MERGE_CLI_START_METHOD", "spawn")
    merge(planned(models, RECIPES[name], variants=variants, threads=2), tmp_path / "two" / "all", processes=True)
    assert shown(tmp_path / "two" / "all") == shown(tmp_path / "one" / "all")


@pytest.mark.parametrize("name", ["ties of the model", "ties of each tensor"])
def test_a_measure_is_taken_once_for_variants_that_agree_in_what_it_depends_on(models: Path, name: str) -> None:
    recipe = RECIPES[name]
    one, same, two = CountingReads(), CountingReads(), CountingReads()
    for files, variants in (
        (one, {"a": {"density": 0.4}}),
        (same, {"a": {"density": 0.4}, "b": {"density": 0.4}, "c": {"density": 0.4, "lambda": 0.5}}),
        (two, {"a": {"density": 0.4}, "b": {"density": 0.5}}),
    ):
        diagnose(planned(models, recipe, variants=variants, threads=1), files=files)
    assert one.read == same.read < two.read


def test_variances_stay_between_the_inputs_in_every_variant(tmp_path: Path) -> None:
    for name, value in (("base", 1.0), ("one", 0.5), ("two", 0.25)):
        write_checkpoint(tmp_path / name, {"bn.running_var": [value], "bn.weight": [value]})
    models = [{"model": name, "parameters": {"weight": 1.0}} for name in ("one", "two")]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    merge(
        build_plan(recipe_over(tmp_path, recipe), variants={"a": {"lambda": 1.0}, "b": {"lambda": 0.2}}),
        tmp_path / "out",
    )

    # 1 - 0.5 - 0.75 is below the smallest variance, 1 - 0.2 * 1.25 is not.
    found = [read_checkpoint(tmp_path / "out" / name) for name in ("a", "b")]
    assert [each["bn.running_var"].item() for each in found] == [0.25, 0.75]
    assert [each["bn.weight"].item() for each in found] == [-0.25, 0.75]


# --- the output -----------------------------------------------------------------------------------------------------


def test_each_folder_is_a_whole_checkpoint_and_one_list_of_digests_covers_all(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = merge(planned(models, ARITHMETIC, variants=SWEEP, shard_size=2**17), out)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*SWEEP, "SHA256SUMS", "merge_manifest.json", "recipe.yml"]
    )
    single = alone(models, ARITHMETIC, {}, tmp_path / "single")
    for name in SWEEP:
        held = {path.name for path in (out / name).iterdir()}
        assert {"config.json", "tokenizer.json", "README.md", "model.safetensors.index.json"} < held
        assert (out / name / "config.json").read_bytes() == (single / "config.json").read_bytes()
        assert f"# out/{name}\n" in (out / name / "README.md").read_text()
        assert f"- `parameters.lambda={SWEEP[name]['lambda']}`" in (out / name / "README.md").read_text()
    check_sums(out)
    assert set(report.files) == {
        str(path.relative_to(out)) for name in SWEEP for path in (out / name).glob("*.safetensors")
    }
    assert report.written_bytes == 8 * sum(path.stat().st_size for path in (out / "lambda=0.1").glob("*.safetensors"))
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_each_variant_is_loaded_by_transformers_with_the_numbers_of_its_own_lambda(tmp_path: Path) -> None:
    torch.manual_seed(0)
    numbers = []
    for name in ("base", "one", "two"):
        model = llama()
        model.save_pretrained(tmp_path / name)
        numbers.append(model.state_dict())
    models = [{"model": "one", "parameters": {"weight": 1.0}}, {"model": "two", "parameters": {"weight": 0.5}}]
    recipe = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    variants = {"half": {"lambda": 0.5}, "whole": {"lambda": 1.0}}
    merge(build_plan(recipe_over(tmp_path, recipe), variants=variants), tmp_path / "out", sync=False)
    for name, scale in (("half", 0.5), ("whole", 1.0)):
        found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out" / name).state_dict()
        assert found.keys() == numbers[0].keys()
        for key, base in numbers[0].items():
            wanted = base + scale * ((numbers[1][key] - base) + 0.5 * (numbers[2][key] - base))
            torch.testing.assert_close(found[key], wanted, rtol=1e-5, atol=1e-6)


def test_the_manifest_has_what_each_variant_was_given_and_its_parameters(models: Path, tmp_path: Path) -> None:
    merge(planned(models, ARITHMETIC, variants={"a": {"lambda": 0.25}, "b": {"weight": 3}}), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    assert {name: each["given"] for name, each in manifest["variants"].items()} == {
        "a": {"lambda": 0.25},
        "b": {"weight": 3.0},
    }
    values = {name: each["parameters"][0]["values"] for name, each in manifest["variants"].items()}
    assert (values["a"]["lambda"], values["a"]["weight"]) == (0.25, [1.0, 0.5])
    assert (values["b"]["lambda"], values["b"]["weight"]) == (0.7, [3.0, 3.0])


def test_the_posterior_precision_of_each_variant_is_written_below_it(models: Path, tmp_path: Path) -> None:
    recipe, variants = RECIPES["gradient_matching"], {"a": {"weight": 1.0}, "b": {"weight": 0.25}}
    out = check_equal(models, recipe, variants, tmp_path)
    config = json.loads((out / "b" / "precision" / "config.json").read_text())
    assert config == {"kind": "precision", "prior_precision": 0.5}
    assert (out / "a" / "precision" / "model.safetensors").read_bytes() != (
        out / "b" / "precision" / "model.safetensors"
    ).read_bytes()
    check_sums(out)
    assert verify(out, replay=Replay(None, folder=models)).sound


def test_what_a_method_says_is_said_of_each_variant_by_its_name(models: Path, tmp_path: Path) -> None:
    plan = planned(models, RECIPES["gradient_matching"], variants={"a": {"weight": 1.0}, "b": {"weight": 0.25}})
    report = merge(plan, tmp_path / "out")
    assert report.diagnostics.keys() == {"a", "b"}
    assert report.diagnostics["a"]["extrapolation"] > report.diagnostics["b"]["extrapolation"]
    assert all(sentence.startswith(("variant 'a': ", "variant 'b': ")) for sentence in report.findings)


def test_a_second_run_finds_the_output_complete_and_other_variants_are_another_merge(
    models: Path, tmp_path: Path
) -> None:
    variants = {"a": {"lambda": 0.25}, "b": {"lambda": 0.5}}
    merge(planned(models, ARITHMETIC, variants=variants), tmp_path / "out")
    before = contents(tmp_path / "out")
    assert merge(planned(models, ARITHMETIC, variants=variants), tmp_path / "out").unchanged
    for others in ({"a": {"lambda": 0.25}, "b": {"lambda": 0.6}}, {"a": {"lambda": 0.25}, "c": {"lambda": 0.5}}, None):
        with pytest.raises(RecipeError, match="exists"):
            merge(planned(models, ARITHMETIC, variants=others), tmp_path / "out")
    assert contents(tmp_path / "out") == before
    merge(planned(models, ARITHMETIC, variants={"c": {"lambda": 0.5}}), tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "a").exists()


# --- resume and verify ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["task_arithmetic", "ties of the model", "gradient_matching"])
def test_a_merge_of_variants_that_is_stopped_goes_on_to_the_same_bytes(models: Path, tmp_path: Path, name: str) -> None:
    key = "weight" if name == "gradient_matching" else "lambda"
    variants = {str(value): {key: value} for value in (0.25, 0.5, 0.75)}
    files = Seam()
    merge(planned(models, RECIPES[name], variants=variants, threads=1), tmp_path / "whole" / "out", files=files)
    blocks = sum(map(is_block, files.made))
    resumed = []
    for writes in (1, blocks // 2, blocks - 1):
        out = tmp_path / str(writes) / "out"
        with pytest.raises(Stopped):
            merge(planned(models, RECIPES[name], variants=variants, threads=1), out, files=StopAfter(writes))
        report = merge(planned(models, RECIPES[name], variants=variants), out)
        resumed.append(report.resumed_bytes)
        assert contents(out) == contents(tmp_path / "whole" / "out")
        assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert resumed == sorted(resumed)
    assert 0 < resumed[-1] < report.written_bytes


def test_a_bit_that_changed_in_one_variant_of_a_stopped_merge_is_merged_again(models: Path, tmp_path: Path) -> None:
    plan = planned(models, ARITHMETIC, variants=SWEEP, threads=1)
    merge(plan, tmp_path / "whole" / "out")
    out = tmp_path / "stopped" / "out"
    with pytest.raises(Stopped):
        merge(plan, out, files=StopAfter(8 * 22))
    target = plan.layout.targets["layers.0.long"]
    with (out.with_name("out.partial") / "lambda=0.7" / target.file.name).open("r+b") as file:
        file.seek(target.offset)
        byte = file.read(1)[0]
        file.seek(target.offset)
        file.write(bytes([byte ^ 4]))
    report = merge(plan, out)
    assert any("had changed since and were merged again" in warning for warning in report.warnings)
    assert contents(out) == contents(tmp_path / "whole" / "out")


def test_an_unfinished_merge_of_other_variants_is_refused_by_name(models: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        merge(planned(models, ARITHMETIC, variants=SWEEP, threads=1), tmp_path / "out", files=StopAfter(8 * 18))
    other = {**SWEEP, "lambda=0.3": {"lambda": 0.31}}
    with pytest.raises(RecipeError, match=r"variant lambda=0\.3 changed"):
        merge(planned(models, ARITHMETIC, variants=other, threads=1), tmp_path / "out")


def test_verify_covers_every_variant_and_computes_all_again(models: Path, tmp_path: Path) -> None:
    plan = planned(models, ARITHMETIC, variants=SWEEP)
    merge(plan, tmp_path / "out")
    found = verify(tmp_path / "out", replay=Replay(None, folder=models))
    assert found.sound, found.problems
    assert found.tensors == 8 * len(plan.tasks)
    assert found.replayed == tuple(task.target.name for task in plan.tasks)


def test_verify_finds_a_changed_byte_in_the_fifth_variant_and_the_tensor_that_it_belongs_to(
    models: Path, tmp_path: Path
) -> None:
    plan, out = planned(models, ARITHMETIC, variants=SWEEP), tmp_path / "out"
    merge(plan, out)
    name, target = list(SWEEP)[4], plan.layout.targets["layers.0.w"]
    path = out / name / target.file
    content = bytearray(path.read_bytes())
    content[target.offset] ^= 1
    path.write_bytes(content)
    found = verify(out, replay=Replay(None, folder=models))
    assert found.problems == (
        f"{name}/model.safetensors has changed: its SHA-256 is not the recorded one",
        f"'{name}/layers.0.w' differs from element 0 on, when it is computed again",
    )
    assert "layers.0.w" not in found.replayed
    with pytest.raises(RecipeError, match=f"{name}/model.safetensors has changed since"):
        merge(plan, out)


def test_verify_finds_nan_a_missing_variant_and_a_file_that_was_added_to_one(models: Path, tmp_path: Path) -> None:
    merge(planned(models, ARITHMETIC, variants=SWEEP), tmp_path / "out")
    (tmp_path / "out" / "lambda=0.2" / "adapter_config.json").write_text("{}")
    shutil.rmtree(tmp_path / "out" / "lambda=0.3")
    problems = verify(tmp_path / "out", replay=Replay(None, folder=models)).problems
    assert "lambda=0.3/model.safetensors is missing" in problems
    assert "lambda=0.2/adapter_config.json is not a file of the merge, and would be loaded with it" in problems


# --- errors ---------------------------------------------------------------------------------------------------------


def refused(models: Path, variants: Any, recipe: Mapping[str, Any] = ARITHMETIC) -> str:
    with pytest.raises(RecipeError) as caught:
        planned(models, recipe, variants=variants)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/a", "a\\b", ".hidden", "a b", "a\n", "ü", "a" * 101, "SHA256SUMS", "recipe.yml", "a.", 3],
)
def test_a_name_that_is_no_safe_folder_is_refused(models: Path, name: Any) -> None:
    assert "expected a name for a folder" in refused(models, {name: {"lambda": 1.0}})


def test_names_that_differ_in_case_only_are_refused(models: Path) -> None:
    said = refused(models, {"a": {"lambda": 1.0}, "A": {"lambda": 0.5}})
    assert said.startswith("variant 'A': its folder is that of 'a'")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"lamda": 1.0}, "recipe, variant 'b': parameters.lamda: task_arithmetic has no such parameter"),
        ({"lambda": "much"}, "recipe, variant 'b': parameters.lambda: expected a number, got 'much'"),
        ({"lambda": None}, "recipe, variant 'b': parameters.lambda: "),
        ({"lambda": float("nan")}, "recipe, variant 'b': parameters.lambda: expected a finite number, got nan"),
        (0.5, "recipe, variant 'b': expected a mapping of parameters, got '0.5'"),
    ],
)
def test_a_parameter_that_is_wrong_is_said_with_the_name_of_its_variant(models: Path, given: Any, said: str) -> None:
    assert refused(models, {"a": {"lambda": 1.0}, "b": given}).startswith(said)


def test_no_variants_at_all_are_refused(models: Path) -> None:
    assert "expected at least one" in refused(models, {})


def test_fishers_must_be_scaled_alike_in_all_variants(models: Path) -> None:
    variants = {"a": {"curvature": "sum"}, "b": {"curvature": "mean"}}
    said = refused(models, variants, RECIPES["gradient_matching"])
    assert "variant 'b': curvature, examples and base_examples are not those of variant 'a'" in said


def test_the_base_must_be_merged_in_all_variants_or_in_none(models: Path) -> None:
    said = refused(models, {"a": {}, "b": {"include_base": False}}, RECIPES["fisher"])
    assert "variant 'b': whether the base is merged too is not as in variant 'a'" in said


def test_cautions_name_their_variant(models: Path) -> None:
    plan = planned(models, ARITHMETIC, variants={"a": {"lambda": 0.5}, "b": {"lambda": 40.0}})
    assert [w for w in plan.warnings if "the weights count" in w] == [
        next(w for w in plan.warnings if w.startswith("variant 'b': task_arithmetic: the weights count 60"))
    ]


def test_a_result_that_is_not_finite_names_its_variant(models: Path, tmp_path: Path) -> None:
    variants = {"a": {"lambda": 0.5}, "b": {"lambda": 1e38}}
    with pytest.raises(VerificationError, match="of the output b holds"):
        merge(planned(models, ARITHMETIC, variants=variants), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_must_have_room_for_all_variants(models: Path, tmp_path: Path) -> None:
    plan = planned(models, ARITHMETIC, variants=SWEEP)

    class Small(Files):
        def free_bytes(self, folder: Path) -> int:
            return plan.written_bytes - 1

    with pytest.raises(ResourceError, match="the output takes"):
        merge(plan, tmp_path / "out", files=Small())
