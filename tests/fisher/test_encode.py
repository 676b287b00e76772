"""What becomes of rows: texts too long, class names, images, and models that rows cannot be encoded for."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import processors
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTImageProcessor,
)

from merge_cli.errors import CheckpointError, RecipeError
from merge_cli.fisher import Estimator, FisherReport, FisherSettings, Source, estimate_fisher
from tests.fisher.folders import WORDS, letters, save_bert, save_model, save_rows


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def measure(model: Path, data: Path, **options: Any) -> FisherReport:
    settings = FisherSettings(str(model), Source(str(data)), **options)
    return estimate_fisher(settings, model.parent / "fisher", sync=False)


def small_bert(folder: Path, **settings: Any) -> Path:
    return save_bert(folder / "bert", num_hidden_layers=1, **settings)


def small_vit(folder: Path, *, processor: bool = True) -> Path:
    """A classifier whose second class is that of blue images, which comes first in the alphabet."""
    model = save_model(
        folder / "vit", "ViTForImageClassification", "ViTConfig", hidden_size=8, intermediate_size=8,
        num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4, id2label={0: "red", 1: "blue"},
        label2id={"red": 0, "blue": 1},
    )  # fmt: skip
    if processor:
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(model)
    return model


def colours(folder: Path) -> Path:
    for name, colour in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (folder / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(folder / "images" / name / "0.png")
    return folder / "images"


def test_texts_are_cut_off_where_the_positions_of_the_model_end(tmp_path: Path) -> None:
    model = small_bert(tmp_path)  # of 16 positions
    data = save_rows(tmp_path / "rows.jsonl", [{"text": " ".join(["a"] * 40), "label": 0}])
    assert measure(model, data).metadata["examples"] == "1"


def test_positions_that_begin_behind_the_padding_count_from_there(tmp_path: Path) -> None:
    model = save_model(
        tmp_path / "roberta", "RobertaForSequenceClassification", "RobertaConfig", vocab_size=len(WORDS), hidden_size=8,
        intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=10, num_labels=2,
    )  # fmt: skip
    data = save_rows(tmp_path / "rows.jsonl", [{"text": " ".join(["a"] * 40), "label": 0}])
    assert measure(model, data).metadata["examples"] == "1"


def test_a_tokenizer_of_a_larger_vocabulary_is_another_models(tmp_path: Path) -> None:
    model = small_bert(tmp_path)
    config = json.loads((model / "tokenizer.json").read_text())
    config["model"]["vocab"]["zebra"] = 99
    (model / "tokenizer.json").write_text(json.dumps(config))
    data = save_rows(tmp_path / "rows.jsonl", [{"text": "a zebra", "label": 0}])
    with pytest.raises(CheckpointError, match=f"token 99, the model has embeddings for {len(WORDS)}"):
        measure(model, data)


def test_pairs_are_given_to_the_model_as_pairs(tmp_path: Path) -> None:
    model = small_bert(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(model)
    # As BERT's own does: the second text is told by its segment.
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[MASK] $A [MASK]", pair="[MASK] $A [MASK] $B:1 [MASK]:1", special_tokens=[("[MASK]", 2)]
    )
    tokenizer.save_pretrained(model)
    told = json.loads((model / "tokenizer_config.json").read_text())
    told["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (model / "tokenizer_config.json").write_text(json.dumps(told))
    data = save_rows(tmp_path / "rows.jsonl", [{"hypothesis": "c", "premise": "a b", "label": 2}])
    report = measure(model, data, estimator=Estimator.EMPIRICAL)
    loaded = AutoModelForSequenceClassification.from_pretrained(model)
    ids = [WORDS.index(word) for word in ("[MASK]", "a", "b", "[MASK]", "c", "[MASK]")]
    outputs = loaded(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([[0, 0, 0, 0, 1, 1]]))
    weight = loaded.bert.embeddings.token_type_embeddings.weight
    expected = torch.autograd.grad(torch.log_softmax(outputs.logits[0], dim=-1)[2], weight)[0] ** 2
    found = load_file(report.out / "model.safetensors")["bert.embeddings.token_type_embeddings.weight"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    assert (report.metadata["layout"], report.metadata["text_columns"]) == ("pair", '["premise", "hypothesis"]')


@pytest.mark.parametrize(("words", "cut"), [(16, 0), (17, 1)])
def test_texts_that_were_cut_off_are_counted(tmp_path: Path, words: int, cut: int) -> None:
    rows = [{"text": "a b", "label": 0}, {"text": " ".join(["a"] * words), "label": 0}]
    metadata = measure(small_bert(tmp_path), save_rows(tmp_path / "rows.jsonl", rows)).metadata
    assert (metadata["rows_cut"], metadata["max_length"], metadata["classes"]) == (str(cut), "16", "3")


@pytest.mark.parametrize("settings", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}])
def test_a_model_that_does_not_choose_one_class_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = small_bert(tmp_path, **settings)
    with pytest.raises(RecipeError, match="does not choose one of several classes"):
        measure(model, save_rows(tmp_path / "rows.jsonl", letters(2)))


def test_a_decoder_that_classifies_takes_its_padding_from_the_tokenizer(tmp_path: Path) -> None:
    # Token 0 stands for padding there; without knowing it, the model would look at the wrong token, or refuse.
    model = save_model(
        tmp_path / "llama", "LlamaForSequenceClassification", "LlamaConfig", vocab_size=len(WORDS), hidden_size=8,
        intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=3, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    data = save_rows(tmp_path / "rows.jsonl", letters(5))
    together = measure(model, data, batch_size=5)
    found = load_file(together.out / "model.safetensors")["score.weight"]
    single = estimate_fisher(FisherSettings(str(model), Source(str(data)), batch_size=1), tmp_path / "one", sync=False)
    torch.testing.assert_close(found, load_file(single.out / "model.safetensors")["score.weight"])


def test_classes_of_the_data_are_those_of_the_model_by_name_and_not_by_number(tmp_path: Path) -> None:
    model = small_vit(tmp_path)
    out = measure(model, colours(tmp_path), gradient=True).out
    loaded = AutoModelForImageClassification.from_pretrained(model)
    expected = torch.zeros(2)
    for label, colour in ((0, (255, 0, 0)), (1, (0, 0, 255))):
        # The processor brings 0 to -1 and 255 to 1.
        pixels = torch.tensor([channel / 127.5 - 1 for channel in colour]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
        p = torch.softmax(loaded(pixel_values=pixels).logits[0], dim=-1).detach()
        expected += p - torch.eye(2)[label]
    found = load_file(out / "gradient" / "model.safetensors")["classifier.bias"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_images_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    images = colours(tmp_path)
    (images / "red" / "1.png").write_bytes(b"no image")
    report = measure(small_vit(tmp_path), images)
    assert report.metadata["examples"] == "2"
    assert report.unusable == {"with an image that cannot be read": 1}


def test_images_need_the_processor_of_the_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the model has no image processor"):
        measure(small_vit(tmp_path, processor=False), colours(tmp_path))
