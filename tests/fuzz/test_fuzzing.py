"""A short, seeded run of each fuzzer, and proof that a fuzzer notices what none may do."""

from pathlib import Path
from random import Random

import pytest

from merge_cli.checkpoint import open_checkpoint
from merge_cli.errors import CheckpointError, VerificationError
from tests.fuzz import headers, indexes, journals, manifests, pickles, recipes, states
from tests.fuzz.trying import Attempt, try_all


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("attempt", "inputs"),
    [
        pytest.param(headers.attempt, 400, id="headers"),
        pytest.param(indexes.attempt, 250, id="indexes"),
        pytest.param(recipes.attempt, 150, id="recipes"),
        pytest.param(manifests.attempt, 100, id="manifests"),
        pytest.param(pickles.attempt, 500, id="pickles"),
        pytest.param(states.attempt, 200, id="states of optimizers"),
    ],
)
def test_broken_inputs_are_sound_or_refused(attempt: Attempt, inputs: int, tmp_path: Path) -> None:
    tally = try_all(attempt, tmp_path, inputs=inputs, seed=0)
    assert tally.tried == inputs
    # Neither refuses everything: then nothing behind the first check would be tried.
    assert min(tally.accepted, tally.refused) > inputs // 20


def test_a_journal_of_wrong_content_costs_doing_the_work_again_and_no_more(tmp_path: Path) -> None:
    # What is refused is as a rule another merge's journal; all the rest ends in the right bytes.
    tally = try_all(journals.attempt, tmp_path, inputs=60, seed=0)
    assert tally.tried == 60
    assert tally.accepted > tally.refused > 0


@pytest.mark.parametrize("error", [ValueError("not ours"), RecursionError(), VerificationError("of no input")])
def test_another_error_than_one_of_an_input_is_a_finding(error: Exception, tmp_path: Path) -> None:
    def attempt(chance: Random, folder: Path) -> bool:
        raise error

    with pytest.raises((type(error), AssertionError)) as caught:
        try_all(attempt, tmp_path, inputs=3, seed=5)
    assert "input 0 of seed 5" in caught.value.__notes__[0]


def test_a_message_that_fills_screens_is_a_finding(tmp_path: Path) -> None:
    def attempt(chance: Random, folder: Path) -> bool:
        raise CheckpointError("x" * 100_000)

    with pytest.raises(AssertionError, match="a message of 100000 characters"):
        try_all(attempt, tmp_path, inputs=1, seed=0)


def test_a_file_that_says_it_holds_what_it_does_not_is_noticed(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    (tmp_path / "x.safetensors").write_bytes(content)
    tensors = open_checkpoint(tmp_path / "x.safetensors").tensors
    headers.check(content, tensors)
    with pytest.raises(AssertionError):
        headers.check(content + b"x", tensors)
