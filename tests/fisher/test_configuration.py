"""What lies beside a model's weights and would change or run something: code, kernels, adapters."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from merge_cli.checkpoint import open_checkpoint
from merge_cli.errors import CheckpointError
from merge_cli.fisher import Task
from merge_cli.fisher.configuration import read_configuration
from merge_cli.fisher.hf_model import empty_model, load_model
from tests.fisher.folders import save_bert

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import BertConfig, BertForSequenceClassification
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert", num_hidden_layers=1)


@pytest.fixture
def with_code(model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a class that stands beside its weights, and a user who answers yes to everything."""
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    edit(model, model_type="own", auto_map=names)
    (model / "own.py").write_text(CODE.format(mark=str(model / "ran")))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(model / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return model


def load(folder: Path, *, trusted: bool = False) -> Any:
    return load_model(
        open_checkpoint(folder), Task.SEQUENCE_CLASSIFICATION, dtype="float32", device=torch.device("cpu"),
        trusted=trusted,
    ).model  # fmt: skip


def test_code_beside_a_model_does_not_run_and_the_option_that_lets_it_is_named(with_code: Path) -> None:
    with pytest.raises(CheckpointError, match="needs Python code of its own") as caught:
        load(with_code)
    assert "--trust-remote-code" in str(caught.value.hint)
    with pytest.raises(CheckpointError, match="needs Python code of its own"):
        empty_model(open_checkpoint(with_code))
    assert not (with_code / "ran").exists()
    assert sys.stdin.read() == "y\n" * 9


def test_code_of_a_tokenizer_does_not_run_either(with_code: Path) -> None:
    edit(with_code, model_type="bert", auto_map={})
    told = json.loads((with_code / "tokenizer_config.json").read_text())
    told |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
    (with_code / "tokenizer_config.json").write_text(json.dumps(told))
    load(with_code)
    assert not (with_code / "ran").exists()
    assert sys.stdin.read() == "y\n" * 9


def test_code_that_is_trusted_runs(with_code: Path) -> None:
    assert type(load(with_code, trusted=True)).__name__ == "OwnModel"
    assert (with_code / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("kernel", ["someone/kernel", "flash_attention_2"])
def test_kernels_that_a_configuration_names_are_not_fetched(
    model: Path, monkeypatch: pytest.MonkeyPatch, key: str, kernel: str
) -> None:
    def fetched(*arguments: object, **named: object) -> None:
        raise AssertionError("a kernel was asked for")

    edit(model, **{key: kernel})
    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda: True)
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", fetched)
    assert load(model).config._attn_implementation in {"eager", "sdpa"}


def test_parts_of_a_model_name_no_kernels_either(model: Path) -> None:
    part = {"model_type": "llama", "attn_implementation": "someone/kernel"}
    edit(model, model_type="llava", architectures=["LlavaForConditionalGeneration"], text_config=part)
    config = read_configuration(open_checkpoint(model), trusted=False)
    assert config.text_config._attn_implementation is None


def test_an_adapter_beside_the_weights_is_refused_and_not_applied(model: Path) -> None:
    (model / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/y"}))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json beside its weights"):
        load(model)


def test_what_says_that_plain_weights_are_quantised_is_left_over(model: Path) -> None:
    edit(model, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert {value.dtype for value in load(model).state_dict().values() if value.is_floating_point()} == {torch.float32}
