"""Examples of prompts with completions, instructions and chats: of which tokens the loss is taken."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from merge_cli.errors import CheckpointError
from merge_cli.fisher import Estimator, FisherSettings, Source, estimate_fisher
from merge_cli.fisher.batching import Encoded, Unusable
from merge_cli.fisher.generating import chat_example, completion_example, instruction_prompt, turns_of
from tests.fisher.folders import save_model, save_rows

WORDS = ["[PAD]", "[UNK]", "<end>", "<user>", "<assistant>", "<system>", *"abcdefgh"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}"
    "{% generation %} {{ m.content }} <end>{% endgeneration %}{% else %} {{ m.content }} <end>{% endif %}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [
    {"role": "system", "content": "h"},
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e f"},
]
SHAREGPT = [
    {"from": "system", "value": "h"},
    {"from": "human", "value": "a b"},
    {"from": "gpt", "value": "c"},
    {"from": "human", "value": "d"},
    {"from": "gpt", "value": "e f"},
]


def words(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", eos_token="<end>", model_input_names=["input_ids"]
    )
    tokenizer.chat_template = template
    return tokenizer


def told(example: Encoded) -> tuple[str, str]:
    """The text of an example, and the tokens of which the loss is taken, with dots for the others."""
    text = " ".join(WORDS[token] for token in example.inputs["input_ids"].tolist())
    return text, " ".join("." if token == -100 else WORDS[token] for token in example.label.tolist())


def test_of_a_prompt_and_its_completion_the_latter_counts_and_the_end() -> None:
    assert told(completion_example(words(), "a b ", "c d", 16)) == ("a b c d <end>", ". . c d <end>")
    assert told(completion_example(words(), "a b ", "a b <end>", 16)) == ("a b a b <end>", ". . a b <end>")


def test_a_token_across_the_border_counts() -> None:
    vocabulary = {"[UNK]": 0, "<end>": 1, "a": 2, "b": 3, "c": 4, "bc": 5}
    made = Tokenizer(models.BPE(vocabulary, [("b", "c")], unk_token="[UNK]"))
    pieces = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="<end>")
    found = completion_example(pieces, "ab", "ca", 16)
    assert found.inputs["input_ids"].tolist() == [2, 5, 2, 1]
    assert found.label.tolist() == [-100, 5, 2, 1]


def test_what_is_too_long_is_cut_at_its_end_and_a_completion_that_goes_with_it_is_no_example() -> None:
    found = completion_example(words(), "a b ", "c d", 3)
    assert (told(found), found.cut) == (("a b c", ". . c"), True)
    assert not completion_example(words(), "a b ", "c d", 5).cut
    with pytest.raises(Unusable, match="begins behind 2 tokens"):
        completion_example(words(), "a b ", "c d", 2)


def test_instructions_are_asked_the_way_alpaca_asks() -> None:
    assert instruction_prompt("Add.", "2 and 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n2 and 2\n\n"
        "### Response:\n"
    )
    assert instruction_prompt("Sing.", "") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSing.\n\n### Response:\n"
    )


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
@pytest.mark.parametrize("chat", [CHAT, SHAREGPT])
def test_of_a_chat_the_turns_of_the_assistant_count_with_their_ends(template: str, chat: list[dict[str, str]]) -> None:
    assert told(chat_example(words(template), turns_of(chat), 32)) == (
        "<system> h <end> <user> a b <end> <assistant> c <end> <user> d <end> <assistant> e f <end>",
        ". . . . . . . . c <end> . . . . e f <end>",
    )


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
def test_of_a_prompt_of_turns_none_counts(template: str) -> None:
    assert told(chat_example(words(template), CHAT, 32, given=4))[1] == ". . . . . . . . . . . . . . e f <end>"


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
def test_a_chat_is_cut_at_its_end(template: str) -> None:
    found = chat_example(words(template), CHAT, 9)
    assert (told(found)[1], found.cut) == (". . . . . . . . c", True)
    with pytest.raises(Unusable, match="begins behind 8 tokens"):
        chat_example(words(template), CHAT, 8)


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ("a b", "without a chat"),
        ([], "without a chat"),
        ([{"role": "user", "content": None}], "not text"),
        ([{"content": "a"}], "of nobody"),
        (["a"], "a turn that is none"),
        (CHAT[:2], "without a turn of the assistant"),
    ],
)
def test_rows_that_are_no_chats_are_told_apart(chat: Any, reason: str) -> None:
    with pytest.raises(Unusable, match=reason):
        chat_example(words(), turns_of(chat), 32)


def test_empty_keys_of_a_table_are_no_part_of_a_turn() -> None:
    assert turns_of([{"role": "user", "content": "a", "tool_calls": None}]) == [{"role": "user", "content": "a"}]


def test_a_chat_that_the_template_refuses_is_no_example() -> None:
    with pytest.raises(Unusable, match=r"that the chat template refuses \(roles must alternate\)"):
        chat_example(words("{{ raise_exception('roles must alternate') }}"), CHAT, 32)


def test_a_template_that_changes_earlier_turns_needs_marks() -> None:
    last_only = "{% for m in messages %}{{ m.content if loop.last or m.role == 'user' else '' }} {% endfor %}"
    with pytest.raises(CheckpointError, match="does not render a chat turn by turn") as caught:
        chat_example(words("{{ messages | length }} " + last_only), CHAT, 32)
    assert "{% generation %}" in str(caught.value.hint)


@pytest.fixture
def llama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = save_model(
        tmp_path / "llama", "LlamaForCausalLM", "LlamaConfig", vocab_size=len(WORDS), hidden_size=8,
        intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    words().save_pretrained(folder)
    return folder


def by_hand(model: Path, examples: list[tuple[list[int], list[int]]]) -> Tensor:
    """Mean squared gradient of the loss at some places of each text, one example after another."""
    loaded = AutoModelForCausalLM.from_pretrained(model)
    weight = loaded.model.layers[0].mlp.up_proj.weight
    total = torch.zeros_like(weight, dtype=torch.float64)
    for ids, places in examples:
        log_p = torch.log_softmax(loaded(input_ids=torch.tensor([ids])).logits[0], dim=-1)
        # What stands at a place is predicted at the one before.
        loss = -sum(log_p[place - 1, ids[place]] for place in places)
        total += torch.autograd.grad(loss, weight)[0].double() ** 2 / len(examples)
    return total


def measured(model: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[Tensor, dict[str, str]]:
    data = save_rows(model.parent / "rows.jsonl", rows)
    settings = FisherSettings(str(model), Source(str(data)), estimator=Estimator.EMPIRICAL, batch_size=2, **options)
    report = estimate_fisher(settings, model.parent / "fisher", sync=False)
    return load_file(report.out / "model.safetensors")["model.layers.0.mlp.up_proj.weight"], report.metadata


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_the_fisher_of_completions_is_that_of_their_tokens_after_their_prompts(llama: Path) -> None:
    rows = [
        {"prompt": "a b ", "completion": "c d"},
        {"prompt": "e", "completion": " f"},
        {"prompt": "g", "completion": ""},
    ]
    found, metadata = measured(llama, rows)
    expected = by_hand(llama, [(ids("a b c d <end>"), [2, 3, 4]), (ids("e f <end>"), [1, 2])])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-9)
    wrong = by_hand(llama, [(ids("a b c d <end>"), [1, 2, 3, 4]), (ids("e f <end>"), [1, 2])])
    assert float((found.double() - wrong).abs().max()) > 1e-3 * float(wrong.max())
    assert metadata["rows_unusable"] == json.dumps({"without a completion": 1})
    assert (metadata["layout"], metadata["text_columns"], metadata["label_column"]) == (
        "completion", '["prompt"]', "completion",
    )  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"conversations": SHAREGPT},
        {"prompt": CHAT[:2], "completion": CHAT[2:]},
    ],
)
def test_the_fisher_of_chats_is_that_of_the_assistants_tokens(llama: Path, row: dict[str, Any]) -> None:
    found, metadata = measured(llama, [row])
    text = "<system> h <end> <user> a b <end> <assistant> c <end> <user> d <end> <assistant> e f <end>"
    expected = by_hand(llama, [(ids(text), [8, 9, 14, 15, 16])])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-9)
    assert metadata["examples"] == "1"


def test_chats_need_a_template(llama: Path) -> None:
    (llama / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="has no chat template") as caught:
        measured(llama, [{"messages": CHAT}])
    assert "chat_template.jinja" in str(caught.value.hint)


def test_instructions_are_measured_at_their_outputs(llama: Path) -> None:
    words_of_the_prompt = len(instruction_prompt("a b", "c").split())
    found, _ = measured(llama, [{"instruction": "a b", "input": "c", "output": "d e"}])
    text = words()(instruction_prompt("a b", "c") + "d e <end>")["input_ids"]
    places = list(range(words_of_the_prompt, words_of_the_prompt + 3))
    torch.testing.assert_close(found.double(), by_hand(llama, [(text, places)]), rtol=1e-4, atol=1e-9)


def test_questions_and_answers_are_set_apart_by_a_line_feed_and_prompts_by_nothing(llama: Path) -> None:
    # Without white space between them the two words would be an unknown one.
    found, _ = measured(llama, [{"question": "a", "answer": "b"}])
    torch.testing.assert_close(found.double(), by_hand(llama, [(ids("a b <end>"), [1, 2])]), rtol=1e-4, atol=1e-9)
