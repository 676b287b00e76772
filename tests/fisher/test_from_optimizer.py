import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.fisher.from_optimizer import ImportSettings, Kind, import_fisher
from tests.fisher.folders import save_bert


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert")


def trained(folder: Path, path: Path, *, groups: str) -> tuple[dict[str, Tensor], float]:
    """Take two AdamW steps with known gradients, save the optimiser, and return v by name and 1 - β₂²."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    named = dict(model.named_parameters())
    bare = [name for name in named if "bias" in name or "LayerNorm" in name]
    split: list[Any] = [{"params": [value for name, value in named.items() if name not in bare], "weight_decay": 0.1},
                        {"params": [named[name] for name in bare], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(
        split if groups == "trainer" else list(named.values()), lr=1e-3, betas=(0.9, 0.99), eps=1e-8
    )
    expected = {name: torch.zeros_like(value) for name, value in named.items()}
    torch.manual_seed(5)
    for _ in range(2):
        for name, value in named.items():
            value.grad = torch.randn_like(value)
            expected[name] = 0.99 * expected[name] + 0.01 * value.grad**2
        optimizer.step()
    torch.save(optimizer.state_dict(), path)
    return expected, 1 - 0.99**2


@pytest.mark.parametrize("groups", ["trainer", "single"])
def test_second_moments_of_adam_are_named_and_scaled_by_the_batch_size(bert: Path, tmp_path: Path, groups: str) -> None:
    moments, correction = trained(bert, tmp_path / "optimizer.pt", groups=groups)
    settings = ImportSettings(str(bert), tmp_path / "optimizer.pt", train_examples=1000, batch_size=16)
    metadata = import_fisher(settings, tmp_path / "out", sync=False)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == load_file(bert / "model.safetensors").keys()
    for name, value in moments.items():
        torch.testing.assert_close(found[name], 16 * value / correction, rtol=1e-5, atol=0)
    expected = {"kind": "fisher", "estimator": "adam", "reduction": "mean", "train_examples": "1000",
                "batch_size": "16", "steps": "2", "beta2": "0.99", "labels": "true"}  # fmt: skip
    assert {name: metadata[name] for name in expected} == expected


def test_the_batch_size_is_read_from_the_state_of_the_trainer(bert: Path, tmp_path: Path) -> None:
    trained(bert, tmp_path / "optimizer.pt", groups="trainer")
    (tmp_path / "trainer_state.json").write_text('{"train_batch_size": 8}')
    settings = ImportSettings(str(bert), tmp_path / "optimizer.pt", train_examples=10)
    assert import_fisher(settings, tmp_path / "out", sync=False)["batch_size"] == "8"


def train(bert: Path, *, accumulated: int) -> Path:
    """Let transformers' Trainer take one step of batches of two equal rows, and return its checkpoint."""
    pytest.importorskip("accelerate")
    row = {"input_ids": torch.tensor([3, 4, 5]), "labels": torch.tensor(1)}
    arguments = transformers.TrainingArguments(
        str(bert.parent / "run"), max_steps=1, save_steps=1, per_device_train_batch_size=2, max_grad_norm=1e9,
        gradient_accumulation_steps=accumulated, adam_beta2=0.9, weight_decay=0.1, use_cpu=True, report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    transformers.Trainer(model=model, args=arguments, train_dataset=[row] * 4).train()
    return bert.parent / "run" / "checkpoint-1"


def test_what_the_trainer_of_transformers_writes_is_imported(tmp_path: Path) -> None:
    bert = save_bert(tmp_path / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    checkpoint = train(bert, accumulated=1)
    settings = ImportSettings(str(checkpoint), checkpoint / "optimizer.pt", train_examples=4)
    metadata = import_fisher(settings, tmp_path / "out", sync=False)
    assert (metadata["steps"], metadata["beta2"], metadata["batch_size"]) == ("1", "0.9", "2")
    # After one step v / (1 - beta2) is the square of the mean gradient, here that of the one row.
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([1])).loss.backward()
    found = load_file(tmp_path / "out" / "model.safetensors")
    largest = max(float(value.grad.square().max()) for value in model.parameters())
    for name, value in model.named_parameters():
        torch.testing.assert_close(found[name], 2 * value.grad.square(), rtol=1e-3, atol=1e-6 * largest)


def test_batches_that_were_accumulated_are_found_out(tmp_path: Path) -> None:
    checkpoint = train(save_bert(tmp_path / "bert"), accumulated=2)
    settings = ImportSettings(str(checkpoint), checkpoint / "optimizer.pt", train_examples=4)
    with pytest.raises(RecipeError, match="batches of 2, but 1 epochs of 4 examples in 1 steps make about 4"):
        import_fisher(settings, tmp_path / "out", sync=False)
    given = ImportSettings(str(checkpoint), checkpoint / "optimizer.pt", train_examples=4, batch_size=4)
    assert import_fisher(given, tmp_path / "out", sync=False)["batch_size"] == "4"


def trainers_folder(bert: Path, folder: Path, **state: Any) -> Path:
    """Make a folder as the Trainer saves it; what is in training_args.bin would run code."""
    folder.mkdir()
    trained(bert, folder / "optimizer.pt", groups="trainer")
    (folder / "training_args.bin").write_bytes(b"cos\nabort\n)R.")
    written = {"train_batch_size": 8, "global_step": 2, "epoch": 0.016, "num_train_epochs": 3} | state
    (folder / "trainer_state.json").write_text(json.dumps(written))
    return folder


def test_the_folder_of_a_trainers_checkpoint_is_taken_as_it_is(bert: Path, tmp_path: Path) -> None:
    folder = trainers_folder(bert, tmp_path / "checkpoint-2")
    metadata = import_fisher(ImportSettings(str(bert), folder, train_examples=1000), tmp_path / "out", sync=False)
    told = ("batch_size", "batch_size_from", "steps", "steps_from", "beta2", "source")
    assert [metadata[name] for name in told] == ["8", "trainer_state.json", "2", "optimizer.pt", "0.99", "optimizer.pt"]
    alone = ImportSettings(str(bert), folder / "optimizer.pt", train_examples=1000)
    import_fisher(alone, tmp_path / "other", sync=False)
    of_folder, of_file = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "other"))
    assert of_folder.keys() == of_file.keys()
    assert all(torch.equal(value, of_file[name]) for name, value in of_folder.items())


def test_steps_that_the_optimizer_does_not_tell_are_the_trainers(bert: Path, tmp_path: Path) -> None:
    folder = trainers_folder(bert, tmp_path / "checkpoint-2")
    state = torch.load(folder / "optimizer.pt")
    for entry in state["state"].values():
        del entry["step"]
    torch.save(state, folder / "optimizer.pt")
    metadata = import_fisher(ImportSettings(str(bert), folder, train_examples=1000), tmp_path / "out", sync=False)
    assert (metadata["steps"], metadata["steps_from"]) == ("2", "trainer_state.json")


def test_the_size_of_the_training_set_is_guessed_at_in_the_hint_alone(bert: Path, tmp_path: Path) -> None:
    folder = trainers_folder(bert, tmp_path / "checkpoint-2")
    with pytest.raises(RecipeError, match="--train-examples is needed") as caught:
        import_fisher(ImportSettings(str(bert), folder), tmp_path / "out")
    # 8 examples in each of 2 steps were 0.016 of them.
    assert caught.value.hint is not None
    assert "about 1000" in caught.value.hint


@pytest.mark.parametrize(
    ("inside", "whose"),
    [
        ("global_step150/mp_rank_00_model_states.pt", "DeepSpeed"),
        ("zero_to_fp32.py", "DeepSpeed"),
        ("optimizer_0/__0_0.distcp", "FSDP"),
        ("optim/__0_0.distcp", "torch.distributed"),
    ],
)
def test_a_state_in_parts_is_refused_by_the_name_of_who_writes_such(
    bert: Path, tmp_path: Path, inside: str, whose: str
) -> None:
    path = tmp_path / "checkpoint-150" / inside
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(CheckpointError, match=f"in parts of {whose}") as caught:
        import_fisher(ImportSettings(str(bert), tmp_path / "checkpoint-150", train_examples=1), tmp_path / "out")
    assert "merge-cli fisher MODEL" in str(caught.value.hint)


def test_a_folder_of_checkpoints_is_refused_with_the_name_of_one(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoint-150").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"holds no optimizer\.pt") as caught:
        import_fisher(ImportSettings(str(bert), tmp_path / "run", train_examples=1), tmp_path / "out")
    assert "run/checkpoint-150" in str(caught.value.hint)


def test_a_compressed_state_is_refused_before_it_is_unpacked(bert: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "optimizer.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(200_000_000))
    assert (tmp_path / "optimizer.pt").stat().st_size < 1_000_000
    settings = ImportSettings(str(bert), tmp_path / "optimizer.pt", train_examples=1, batch_size=1)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="is compressed"):
            import_fisher(settings, tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def group(**settings: Any) -> dict[str, Any]:
    return {"param_groups": [{"params": [0]} | settings], "state": {0: {"exp_avg_sq": torch.ones(2)}}}


@pytest.mark.parametrize(
    ("state", "why"),
    [
        pytest.param({"param_groups": [{"params": [0]}], "state": {0: 5}}, "not a mapping of names", id="entry"),
        pytest.param({"param_groups": [{}], "state": {0: {"exp_avg_sq": torch.ones(2)}}}, "params", id="no params"),
        pytest.param({"param_groups": [5], "state": {}}, "params", id="group"),
        pytest.param({"param_groups": [], "state": {}}, "no param_groups", id="no groups"),
        pytest.param({"param_groups": [{"params": [0]}], "state": {}}, "has taken no step", id="fresh"),
        pytest.param({"param_groups": [{"params": [0]}], "state": []}, "not by the numbers", id="state"),
        pytest.param({"param_groups": [{"params": ["a"]}], "state": {}}, "params are not numbers", id="names"),
        pytest.param({"param_groups": [{"params": [0, 0]}], "state": {}}, "twice", id="twice"),
        pytest.param({"param_groups": [{"params": [1]}], "state": {0: {}}}, "that no group has: 0", id="stranger"),
        pytest.param(group(param_names=["a", "b"]), "param_names", id="param_names"),
        pytest.param({"param_groups": [{"params": [0]}], "state": {0: {"exp_avg_sq": 5}}}, "not a tensor", id="number"),
    ],
)
def test_a_state_of_wrong_types_is_refused_with_what_is_wrong(bert: Path, tmp_path: Path, state: Any, why: str) -> None:
    torch.save(state, tmp_path / "o.pt")
    with pytest.raises(CheckpointError, match=why):
        import_fisher(ImportSettings(str(bert), tmp_path / "o.pt", train_examples=1, batch_size=1), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        pytest.param("exp_avg_sq", torch.ones(3, 16, dtype=torch.complex64), "dtype torch.complex64", id="complex"),
        pytest.param("exp_avg_sq", torch.ones(3, 16, device="meta"), "device meta", id="meta"),
        pytest.param("exp_avg_sq", torch.ones(3, 16, dtype=torch.int64), "floating-point", id="integers"),
        pytest.param("exp_avg_sq", torch.ones(16, 3).t(), "strided", id="transposed"),
        pytest.param("exp_avg_sq", torch.full((3, 16), float("nan")), "not finite", id="NaN"),
        pytest.param("exp_avg_sq", torch.full((3, 16), 3e38), "more than float32 can hold", id="too large"),
        pytest.param("exp_avg_sq", torch.full((3, 16), -1.0), "negative numbers", id="negative"),
        pytest.param("exp_avg_sq", torch.ones(3, 15), "does not fit the model", id="another shape"),
        pytest.param("step", torch.tensor(float("nan")), "step is not a number of steps", id="NaN steps"),
        pytest.param("step", 0.5, "step is not a number of steps", id="half a step"),
        pytest.param("step", torch.ones(2), "step has 2 numbers", id="two steps"),
    ],
)
def test_a_state_with_a_wrong_tensor_is_refused_and_leaves_nothing(
    bert: Path, tmp_path: Path, name: str, value: Any, why: str
) -> None:
    trained(bert, tmp_path / "o.pt", groups="single")
    state = torch.load(tmp_path / "o.pt")
    state["state"][max(state["state"]) - 1][name] = value
    torch.save(state, tmp_path / "o.pt")
    with pytest.raises(CheckpointError, match=why):
        import_fisher(ImportSettings(str(bert), tmp_path / "o.pt", train_examples=1, batch_size=4), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "o.pt"]


def test_a_decay_that_divides_by_nothing_is_refused(bert: Path, tmp_path: Path) -> None:
    trained(bert, tmp_path / "o.pt", groups="single")
    settings = ImportSettings(str(bert), tmp_path / "o.pt", train_examples=1, batch_size=4, beta2=1.0)
    with pytest.raises(RecipeError, match="--beta2 is 1, expected a number from 0 to below 1"):
        import_fisher(settings, tmp_path / "out")


def test_names_that_are_no_parameters_are_refused(bert: Path, tmp_path: Path) -> None:
    save_file({"nothing.exp_avg_sq": torch.ones(2)}, tmp_path / "v.safetensors")
    given: dict[str, Any] = {"train_examples": 10, "batch_size": 4, "steps": 1, "beta2": 0.75}
    with pytest.raises(CheckpointError, match="'nothing' of the optimizer is not a tensor"):
        import_fisher(ImportSettings(str(bert), tmp_path / "v.safetensors", **given), tmp_path / "out")


def test_the_mean_over_tokens_that_language_models_are_trained_on_is_made_up_for(tmp_path: Path) -> None:
    bert = save_bert(tmp_path / "bert", "BertForMaskedLM")
    shape = load_file(bert / "model.safetensors")["cls.predictions.bias"].shape
    save_file({"cls.predictions.bias": torch.full(shape, 0.5)}, tmp_path / "v.safetensors")
    given: dict[str, Any] = {"train_examples": 10, "batch_size": 4, "steps": 1, "beta2": 0.75}
    with pytest.raises(RecipeError, match="--tokens-per-example is needed"):
        import_fisher(ImportSettings(str(bert), tmp_path / "v.safetensors", **given), tmp_path / "out")
    settings = ImportSettings(str(bert), tmp_path / "v.safetensors", **given, tokens_per_example=3)
    import_fisher(settings, tmp_path / "out", sync=False)
    # 4 * 0.5 / (1 - 0.75) * 3 * 3 = 72
    found = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(found, {"cls.predictions.bias": torch.full(shape, 72.0)})


@pytest.mark.parametrize("missing", ["train_examples", "batch_size"])
def test_a_number_that_the_scale_needs_is_asked_for(bert: Path, tmp_path: Path, missing: str) -> None:
    trained(bert, tmp_path / "optimizer.pt", groups="trainer")
    given: dict[str, Any] = {"train_examples": 10, "batch_size": 4, missing: None}
    with pytest.raises(RecipeError, match=f"--{missing.replace('_', '-')} is needed"):
        import_fisher(ImportSettings(str(bert), tmp_path / "optimizer.pt", **given), tmp_path / "out")


def test_a_safetensors_file_of_second_moments_is_read_by_name(bert: Path, tmp_path: Path) -> None:
    shape = load_file(bert / "model.safetensors")["classifier.weight"].shape
    save_file({"classifier.weight.exp_avg_sq": torch.full(shape, 0.5)}, tmp_path / "v.safetensors")
    settings = ImportSettings(
        str(bert), tmp_path / "v.safetensors", train_examples=10, batch_size=4, steps=1, beta2=0.75
    )
    import_fisher(settings, tmp_path / "out", sync=False)
    found = load_file(tmp_path / "out" / "model.safetensors")
    # 4 * 0.5 / (1 - 0.75) = 8
    torch.testing.assert_close(found, {"classifier.weight": torch.full(shape, 8.0)})


def test_the_hessian_of_ivon_is_the_mean_fisher_and_its_sample_size_the_examples(bert: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    numel = sum(value.numel() for value in model.parameters())
    hessian = torch.rand(numel)
    group = {"params": list(range(len(list(model.parameters())))), "hess": hessian, "ess": 500.0, "weight_decay": 0.01}
    torch.save({"state": {}, "param_groups": [group]}, tmp_path / "ivon.pt")
    metadata = import_fisher(ImportSettings(str(bert), tmp_path / "ivon.pt", Kind.IVON), tmp_path / "out", sync=False)
    found = load_file(tmp_path / "out" / "model.safetensors")
    first = next(iter(dict(model.named_parameters())))
    torch.testing.assert_close(found[first].flatten(), hessian[: found[first].numel()])
    assert (metadata["train_examples"], metadata["prior_precision"]) == ("500", "5")


def test_a_state_of_another_model_is_refused(bert: Path, tmp_path: Path) -> None:
    other = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(other.parameters())
    other(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    settings = ImportSettings(str(bert), tmp_path / "optimizer.pt", train_examples=10, batch_size=4)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        import_fisher(settings, tmp_path / "out")


def test_first_moments_are_not_taken_for_second_ones(bert: Path, tmp_path: Path) -> None:
    shape = load_file(bert / "model.safetensors")["classifier.weight"].shape
    save_file({"classifier.weight": torch.full(shape, -0.5)}, tmp_path / "v.safetensors")
    settings = ImportSettings(
        str(bert), tmp_path / "v.safetensors", train_examples=10, batch_size=4, steps=1, beta2=0.75
    )
    with pytest.raises(CheckpointError, match="negative numbers"):
        import_fisher(settings, tmp_path / "out")


def test_an_optimizer_without_second_moments_is_refused(bert: Path, tmp_path: Path) -> None:
    torch.save({"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"params": [0]}]}, tmp_path / "o.pt")
    with pytest.raises(CheckpointError, match="has no exp_avg_sq"):
        import_fisher(ImportSettings(str(bert), tmp_path / "o.pt", train_examples=1, batch_size=1), tmp_path / "out")
