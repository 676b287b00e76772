import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForSequenceClassification

from merge_cli.checkpoint import model_identity, open_checkpoint
from merge_cli.errors import CheckpointError, RecipeError, ResourceError
from merge_cli.fisher.data import Source
from merge_cli.fisher.estimate import FisherReport, estimate_fisher
from merge_cli.fisher.likelihood import Estimator, Task
from merge_cli.fisher.settings import Columns, FisherSettings
from merge_cli.plan import build_plan
from merge_cli.recipe import Recipe
from merge_cli.run import merge
from tests.fisher.folders import WORDS, letters, save_bert, save_model, save_rows


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert", num_hidden_layers=1)


def measure(model: Path, rows: list[dict[str, Any]], out: str = "fisher", **options: Any) -> tuple[FisherReport, Path]:
    data = save_rows(model.parent / "rows.jsonl", rows)
    source = Source(str(data), shuffle=options.pop("shuffle", True))
    settings = FisherSettings(str(model), source, **{"batch_size": 4, **options})
    return estimate_fisher(settings, model.parent / out, sync=False), model.parent / out


def encoded(row: dict[str, Any]) -> dict[str, Tensor]:
    ids = torch.tensor([[WORDS.index(word) for word in row["text"].split()]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_file_holds_the_mean_over_examples_and_classes_under_the_names_of_the_checkpoint(bert: Path) -> None:
    rows = letters(7)
    _, out = measure(bert, rows)
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    named = dict(model.named_parameters())
    expected = {name: torch.zeros_like(value) for name, value in named.items()}
    for row in rows:
        log_p = torch.log_softmax(model(**encoded(row)).logits[0], dim=-1)
        for label in range(3):
            gradients = torch.autograd.grad(log_p[label], list(named.values()), retain_graph=True)
            for name, gradient in zip(named, gradients, strict=True):
                expected[name] += log_p[label].exp().detach() * gradient**2 / 7
    found = tensors(out)
    assert found.keys() == tensors(bert).keys()
    largest = max(float(value.max()) for value in expected.values())
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-7 * largest)


def test_metadata_say_what_was_measured(bert: Path) -> None:
    report, out = measure(bert, letters(10), examples=6, train_examples=500, seed=3)
    with safe_open(out / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata == report.metadata
    expected = {"kind": "fisher", "estimator": "exact", "reduction": "mean", "examples": "6", "draws": "0", "seed": "3",
                "train_examples": "500", "labels": "model", "task": "sequence-classification"}  # fmt: skip
    assert {name: metadata[name] for name in expected} == expected
    assert metadata["model_identity"] == model_identity(open_checkpoint(bert))


def test_the_training_set_counts_as_large_as_the_data_unless_said_otherwise(bert: Path) -> None:
    report, _ = measure(bert, letters(10), examples=6)
    assert report.metadata["train_examples"] == "10"


def test_rows_that_cannot_be_used_are_no_training_examples(bert: Path) -> None:
    rows = [*letters(8), {"text": "", "label": 0}, {"text": None, "label": 0}]
    report, out = measure(bert, rows, gradient=True)
    assert (report.metadata["train_examples"], report.metadata["train_examples_from"]) == ("8", "rows")
    assert (report.metadata["rows"], report.metadata["rows_seen"]) == ("10", "10")
    # The sum over the training set is that over the examples themselves then.
    alone, other = measure(bert, letters(8), "alone", gradient=True)
    assert alone.metadata["train_examples"] == "8"
    found, expected = (tensors(each / "gradient")["classifier.bias"] for each in (out, other))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_where_not_all_rows_are_looked_at_the_usable_share_of_those_counts_for_all(bert: Path) -> None:
    rows = [row for letter in letters(20) for row in (letter, {"text": "", "label": 0})]
    # Six examples are found among the first eleven rows of forty.
    report, _ = measure(bert, rows, examples=6, shuffle=False)
    assert report.metadata["rows_seen"] == "11"
    assert (report.metadata["train_examples"], report.metadata["train_examples_from"]) == (
        str(round(40 * 6 / 11)),
        "estimate",
    )
    given, _ = measure(bert, rows, "given", examples=6, shuffle=False, train_examples=40)
    assert (given.metadata["train_examples"], given.metadata["train_examples_from"]) == ("40", "given")


def test_threads_are_those_asked_for_while_measuring(bert: Path) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    settings = FisherSettings(str(bert), Source(str(save_rows(bert.parent / "rows.jsonl", letters(3)))), threads=2)
    estimate_fisher(settings, bert.parent / "out", sync=False, progress=lambda *_: seen.append(torch.get_num_threads()))
    assert (set(seen), torch.get_num_threads()) == ({2}, before)


def test_a_full_disk_ends_no_measurement_whose_sums_nobody_asked_to_be_saved(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise ResourceError("no space left on the device")

    monkeypatch.setattr("merge_cli.fisher.accumulate.save_state", full)
    monkeypatch.setattr("merge_cli.fisher.keeping._SECONDS", 0.0)
    report, _ = measure(bert, letters(12))
    assert "the sums could not be saved on the way: no space left on the device" in report.warnings
    with pytest.raises(ResourceError):
        measure(bert, letters(12), "asked", checkpoint_every=1)


def test_the_batch_size_does_not_change_the_numbers(bert: Path) -> None:
    _, one = measure(bert, letters(9), "one", batch_size=1, estimator=Estimator.SAMPLED, draws=2)
    _, five = measure(bert, letters(9), "five", batch_size=5, estimator=Estimator.SAMPLED, draws=2)
    largest = max(float(value.max()) for value in tensors(one).values())
    for name, value in tensors(one).items():
        torch.testing.assert_close(tensors(five)[name], value, rtol=1e-4, atol=1e-7 * largest)


class Stop(Exception):
    pass


@pytest.mark.parametrize("parts", [1, 2])
def test_an_interrupted_measurement_continues_and_ends_with_the_same_bytes(bert: Path, parts: int) -> None:
    options: dict[str, Any] = {"parts": parts, "checkpoint_every": 2, "estimator": Estimator.SAMPLED, "gradient": True}
    _, whole = measure(bert, letters(30), "whole", **options)
    settings = FisherSettings(str(bert), Source(str(bert.parent / "rows.jsonl")), batch_size=4, **options)
    calls = 0

    def stop_after_some(done: int, total: int | None) -> None:
        nonlocal calls
        calls += 1
        if calls == 8 * parts - 3:
            raise Stop

    out = bert.parent / "broken"
    with pytest.raises(Stop):
        estimate_fisher(settings, out, sync=False, progress=stop_after_some)
    assert not out.exists()
    assert (bert.parent / "broken.measuring").is_dir()
    estimate_fisher(settings, out, sync=False)
    assert digest(out) == digest(whole)
    assert digest(out / "gradient") == digest(whole / "gradient")
    assert not (bert.parent / "broken.measuring").exists()


def test_sums_of_another_measurement_are_not_continued(bert: Path) -> None:
    def stop(done: int, total: int | None) -> None:
        raise Stop

    data = save_rows(bert.parent / "rows.jsonl", letters(12))
    with pytest.raises(Stop):
        estimate_fisher(
            FisherSettings(str(bert), Source(str(data)), batch_size=4, checkpoint_every=1), bert.parent / "out",
            progress=stop,
        )  # fmt: skip
    with pytest.raises(RecipeError, match="sums of another measurement"):
        estimate_fisher(FisherSettings(str(bert), Source(str(data)), batch_size=3), bert.parent / "out")


def test_measuring_in_parts_gives_the_same_numbers(bert: Path) -> None:
    _, whole = measure(bert, letters(9), "whole")
    _, parts = measure(bert, letters(9), "parts", parts=3)
    for name, value in tensors(whole).items():
        torch.testing.assert_close(tensors(parts)[name], value, rtol=1e-5, atol=0)


def test_only_the_tensors_asked_for_are_measured(bert: Path) -> None:
    report, out = measure(bert, letters(5), only=("*attention.self.query*", "classifier.*"))
    names = {"classifier.weight", "classifier.bias"} | {
        f"bert.encoder.layer.0.attention.self.query.{kind}" for kind in ("weight", "bias")
    }
    assert tensors(out).keys() == names
    assert set(report.unmeasured) == tensors(bert).keys() - names


def test_patterns_that_match_nothing_are_refused(bert: Path) -> None:
    with pytest.raises(RecipeError, match=r"--only quer\* matches no tensor"):
        measure(bert, letters(5), only=("quer*",))


def test_the_gradient_is_the_sum_over_the_training_set_at_the_true_labels(bert: Path) -> None:
    rows = letters(6)
    _, out = measure(bert, rows, gradient=True, train_examples=60)
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    weight = model.classifier.weight
    expected = torch.zeros_like(weight)
    for row in rows:
        loss = -torch.log_softmax(model(**encoded(row)).logits[0], dim=-1)[row["label"]]
        expected += torch.autograd.grad(loss, weight)[0] * 10
    torch.testing.assert_close(tensors(out / "gradient")["classifier.weight"], expected, rtol=1e-4, atol=1e-5)
    with safe_open(out / "gradient" / "model.safetensors", "pt") as file:
        assert (file.metadata()["kind"], file.metadata()["reduction"]) == ("gradient", "sum")


def test_rows_that_cannot_be_used_are_counted_by_reason(bert: Path) -> None:
    rows = [*letters(4), {"text": "", "label": 1}, {"text": "a b", "label": 7}, {"text": None, "label": 0}]
    report, _ = measure(bert, rows)
    assert report.metadata["examples"] == "4"
    assert report.unusable == {"without text": 2, "with a label that is none of the model's 3": 1}


def test_a_file_without_rows_is_an_error(bert: Path) -> None:
    with pytest.raises(CheckpointError, match="has no rows"):
        measure(bert, [])


def test_data_without_labels_is_an_error_where_true_labels_are_needed(bert: Path) -> None:
    rows = [{"text": row["text"]} for row in letters(4)]
    with pytest.raises(CheckpointError, match="no row of the data can be used: 4 without a label"):
        measure(bert, rows, estimator=Estimator.EMPIRICAL)
    assert measure(bert, rows, "sampled", estimator=Estimator.SAMPLED)[0].metadata["examples"] == "4"


def test_a_column_that_does_not_exist_is_named_with_a_guess(bert: Path) -> None:
    with pytest.raises(RecipeError, match="no column 'txt'") as caught:
        measure(bert, letters(4), columns=Columns(text="txt"))
    assert caught.value.hint == "did you mean 'text'?"


def test_a_task_for_which_the_checkpoint_has_no_head_is_refused(tmp_path: Path) -> None:
    model = save_bert(tmp_path / "bert", "BertForMaskedLM")
    with pytest.raises(CheckpointError, match="would be random"):
        measure(model, letters(4), task=Task.SEQUENCE_CLASSIFICATION)


def test_shuffling_is_on_by_default_and_changes_which_examples_are_used(bert: Path) -> None:
    shuffled, _ = measure(bert, letters(40), "shuffled", examples=5)
    ordered, _ = measure(bert, letters(40), "ordered", examples=5, shuffle=False)
    first, _ = measure(bert, letters(5), "first", shuffle=False)
    assert shuffled.metadata["dataset_fingerprint"] != ordered.metadata["dataset_fingerprint"]
    assert first.metadata["dataset_fingerprint"] == ordered.metadata["dataset_fingerprint"]


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "saved"])
def test_the_same_rows_in_other_formats_give_the_same_bytes(bert: Path, suffix: str) -> None:
    report, _ = measure(bert, letters(6), "jsonl", shuffle=False)
    data = datasets.Dataset.from_list(letters(6))
    path = bert.parent / f"rows.{suffix}"
    if suffix == "saved":
        data.save_to_disk(str(path))
    else:
        {"csv": data.to_csv, "parquet": data.to_parquet, "json": data.to_json}[suffix](str(path))
    settings = FisherSettings(str(bert), Source(str(path), shuffle=False), batch_size=4)
    other = estimate_fisher(settings, bert.parent / "other", sync=False)
    assert other.metadata["dataset_fingerprint"] == report.metadata["dataset_fingerprint"]
    assert torch.equal(
        tensors(bert.parent / "other")["classifier.weight"], tensors(bert.parent / "jsonl")["classifier.weight"]
    )


def test_a_tied_tensor_is_written_once_and_a_language_model_draws_a_label_per_token(tmp_path: Path) -> None:
    model = save_model(
        tmp_path / "llama", "LlamaForCausalLM", "LlamaConfig", vocab_size=len(WORDS), hidden_size=16,
        intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    report, out = measure(model, letters(6), batch_size=2)
    assert tensors(out).keys() == tensors(model).keys()
    assert "lm_head.weight" not in tensors(out)
    assert report.metadata["estimator"] == "sampled"
    assert report.metadata["task"] == "causal-lm"
    assert float(tensors(out)["model.embed_tokens.weight"].sum()) > 0


def test_the_empirical_fisher_of_a_language_model_sums_over_tokens(tmp_path: Path) -> None:
    model = save_model(
        tmp_path / "gpt2", "GPT2LMHeadModel", "GPT2Config", vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2,
        n_positions=16, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    rows = letters(6)
    _, out = measure(model, rows, estimator=Estimator.EMPIRICAL)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    weight = loaded.transformer.h[0].mlp.c_fc.weight
    expected = torch.zeros_like(weight)
    for row in rows:
        inputs = encoded(row)
        log_p = torch.log_softmax(loaded(**inputs).logits[0], dim=-1)
        ids = inputs["input_ids"][0]
        loss = -sum(log_p[place, ids[place + 1]] for place in range(len(ids) - 1))
        expected += torch.autograd.grad(loss, weight)[0] ** 2 / 6
    name = next(name for name in tensors(out) if name.endswith("h.0.mlp.c_fc.weight"))
    torch.testing.assert_close(tensors(out)[name], expected, rtol=1e-4, atol=1e-6)


def test_an_image_model_keeps_the_names_that_its_file_has(tmp_path: Path) -> None:
    model = save_model(
        tmp_path / "vit", "ViTForImageClassification", "ViTConfig", hidden_size=16, intermediate_size=24,
        num_hidden_layers=2, num_attention_heads=4, image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    rows = [{"pixel_values": torch.randn(3, 8, 8).tolist(), "label": row % 3} for row in range(5)]
    report, out = measure(model, rows)
    assert tensors(out).keys() == tensors(model).keys()
    assert report.unmeasured == ()
    loaded = AutoModelForImageClassification.from_pretrained(model)
    position = next(value for name, value in loaded.named_parameters() if name.endswith("position_embeddings"))
    expected = torch.zeros_like(position)
    for row in rows:
        log_p = torch.log_softmax(loaded(pixel_values=torch.tensor([row["pixel_values"]])).logits[0], dim=-1)
        for label in range(3):
            gradient = torch.autograd.grad(log_p[label], position, retain_graph=True)[0]
            expected += log_p[label].exp().detach() * gradient**2 / 5
    name = next(name for name in tensors(out) if name.endswith("position_embeddings"))
    torch.testing.assert_close(tensors(out)[name], expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    ("model_class", "rows", "columns"),
    [
        ("BertForMaskedLM", letters(5), Columns()),
        (
            "BertForTokenClassification",
            [
                {"tokens": row["text"].split(), "ner_tags": [row["label"]] * len(row["text"].split())}
                for row in letters(5)
            ],
            Columns(),
        ),
    ],
)
def test_models_with_a_label_per_token_are_measured(
    tmp_path: Path, model_class: str, rows: list[dict[str, Any]], columns: Columns
) -> None:
    model = save_bert(tmp_path / "bert", model_class, num_hidden_layers=1)
    report, out = measure(model, rows, columns=columns, gradient=True)
    assert report.metadata["examples"] == "5"
    found = tensors(out)
    assert all(bool(torch.isfinite(value).all()) and float(value.min()) >= 0 for value in found.values())
    assert float(found["bert.embeddings.word_embeddings.weight"].sum()) > 0


def test_a_sequence_to_sequence_model_is_measured(tmp_path: Path) -> None:
    model = save_model(
        tmp_path / "t5", "T5ForConditionalGeneration", "T5Config", vocab_size=len(WORDS), d_model=16, d_kv=4, d_ff=24,
        num_layers=1, num_heads=4, decoder_start_token_id=0,
    )  # fmt: skip
    rows = [{"text": row["text"], "summary": "a b"} for row in letters(5)]
    report, out = measure(model, rows, batch_size=2)
    assert report.metadata["task"] == "seq2seq-lm"
    assert tensors(out).keys() == tensors(model).keys()


def test_an_output_that_exists_is_not_replaced_without_being_told(bert: Path) -> None:
    measure(bert, letters(4))
    with pytest.raises(RecipeError, match="exists"):
        measure(bert, letters(4))


def test_few_drawn_labels_and_true_labels_are_warned_of(bert: Path) -> None:
    assert measure(bert, letters(6), "exact")[0].warnings == ()
    [few] = measure(bert, letters(6), "sampled", estimator=Estimator.SAMPLED, draws=2)[0].warnings
    assert few.startswith("12 drawn labels make a noisy Fisher")
    [true] = measure(bert, letters(6), "empirical", estimator=Estimator.EMPIRICAL)[0].warnings
    assert true.startswith("the empirical Fisher vanishes")


def test_gradients_that_are_not_finite_are_an_error_that_names_the_tensor(bert: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan
    model.save_pretrained(bert)
    with pytest.raises(CheckpointError, match=r"the gradients of '.*' are not finite"):
        measure(bert, letters(4))
    assert not (bert.parent / "fisher").exists()


def test_the_identity_tells_a_fine_tune_from_its_base(bert: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(bert)
    model.save_pretrained(tmp_path / "copy", max_shard_size="10KB")
    with torch.no_grad():
        model.classifier.bias.add_(1e-3)
    model.save_pretrained(tmp_path / "tuned")
    base, copy, tuned = (model_identity(open_checkpoint(tmp_path / name)) for name in ("bert", "copy", "tuned"))
    assert base == copy
    assert base != tuned
    assert json.dumps(base)


def test_a_model_that_was_saved_in_a_wrapper_is_refused_until_it_is_written_under_its_plain_names(bert: Path) -> None:
    file = bert / "model.safetensors"
    plain = load_file(file)
    save_file({f"_orig_mod.{name}": tensor for name, tensor in plain.items()}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"under names of a wrapper.*\n  hint: .*linear and this model alone"):
        measure(bert, letters(3))
    recipe = Recipe(merge_method="linear", models=[{"model": str(bert), "parameters": {"weight": 1.0}}])
    merge(build_plan(recipe), bert.parent / "written", sync=False)
    assert tensors(bert.parent / "written").keys() == plain.keys()
    measure(bert.parent / "written", letters(3))
