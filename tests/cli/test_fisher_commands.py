"""``fisher``, ``fisher import`` and ``mismatch`` as a user runs them, on tiny models that transformers has saved."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from merge_cli.cli import progress
from merge_cli.fisher import FisherSettings, Source, estimate_fisher
from tests.checkpoints import read_checkpoint, write_recipe
from tests.cli.conftest import Run
from tests.fisher.folders import WORDS, letters, save_bert, save_rows

EXPERTS = ("math", "code")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, two experts that were fine-tuned from it, and their data."""
    folder = tmp_path_factory.mktemp("models")
    save_bert(folder / "base", num_hidden_layers=1)
    save_rows(folder / "base.jsonl", letters(12))
    for number, name in enumerate(EXPERTS):
        save_bert(folder / name, num_hidden_layers=1)
        rows = [row | {"label": (row["label"] + number) % 3} for row in letters(8)]
        save_rows(folder / f"{name}.jsonl", rows)
        model = AutoModelForSequenceClassification.from_pretrained(folder / "base")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for row in rows:
            ids = torch.tensor([[WORDS.index(word) for word in row["text"].split()]])
            model(input_ids=ids, labels=torch.tensor([row["label"]])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which the models and their data lie."""
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def gradient_matching(folder: Path, **changes: Any) -> Path:
    """The recipe of the README."""
    models = [{"model": f"./{name}", "fisher": f"./f-{name}", "gradient": f"./f-{name}/gradient"} for name in EXPERTS]
    content = {"merge_method": "gradient_matching", "base_model": "./base", "base_fisher": "./f-base", "models": models}
    return write_recipe(folder / "r.yml", content | changes)


@pytest.fixture(scope="module")
def measured(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the Fishers of the base and the experts."""
    folder = tmp_path_factory.mktemp("fishers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        for name in ("base", *EXPERTS):
            settings = FisherSettings(str(models / name), Source(str(models / f"{name}.jsonl")), gradient=True)
            estimate_fisher(settings, folder / f"f-{name}", sync=False)
    return folder


@pytest.fixture
def fishers(here: Path, measured: Path) -> None:
    """The same in the working directory."""
    for path in measured.glob("f-*"):
        (here / path.name).symlink_to(path)


def test_from_fine_tuned_checkpoints_to_a_merged_model(here: Path, run: Run) -> None:
    assert run("fisher", "base", "--data", "base.jsonl", "--out", "f-base", "--no-fsync").code == 0
    for name in EXPERTS:
        done = run("fisher", name, "--data", f"{name}.jsonl", "--out", f"f-{name}", "--gradient", "--no-fsync")
        assert done.code == 0, done.err
    seen = run("inspect", "f-math")
    assert "sequence-classification" in seen.out
    assert "zeros" in seen.out
    assert "architecture" not in seen.out
    gradient_matching(here)
    forecast = run("mismatch", "r.yml", "--json")
    assert (forecast.code, forecast.err) == (0, "")
    total = json.loads(forecast.out)["total"]
    assert total["gradient_matching"] < total["task_arithmetic"]
    done = run("merge", "r.yml", "merged", "--json", "--no-fsync")
    assert done.code == 0
    report = json.loads(done.out)
    assert len(report["diagnostics"]["gratio"]) == 2
    shares = [min(max(g, 0), 1) for g in report["diagnostics"]["gratio"]]
    assert report["diagnostics"]["anchors"] == [share / max(1, sum(shares)) for share in shares]
    assert not any("no gradients are stored" in warning for warning in report["warnings"])
    model = AutoModelForSequenceClassification.from_pretrained(here / "merged")
    assert all(bool(torch.isfinite(value).all()) for value in model.parameters())


@pytest.mark.usefixtures("fishers")
def test_mismatch_is_measured_where_data_is_given(here: Path, run: Run) -> None:
    gradient_matching(here)
    done = run("mismatch", "r.yml", "--data", "math.jsonl", "--data", "code.jsonl", "--json")
    assert done.code == 0, done.err
    measured = json.loads(done.out)["measured"]
    assert list(measured) == ["gradient_mismatch", "joint_gradient", "loss_increase", "fidelity"]
    assert all(set(each) == {"linear", "task_arithmetic", "gradient_matching"} for each in measured.values())
    rows = [json.loads(line) for line in (here / "code.jsonl").read_text().splitlines()]
    save_rows(here / "b.jsonl", [{"sentence": row["text"], "category": row["label"]} for row in rows])
    other = "b.jsonl:text=sentence,label=category"
    shown = run("mismatch", "r.yml", "--data", "math.jsonl", "--data", other, "--examples", 2).out
    assert "mean loss of an example, nats" in shown
    assert "0 by construction" in shown
    assert "nats per example" in shown
    assert "measured on data" in shown
    assert "fidelity" in shown
    assert run("mismatch", "r.yml", "--data", "math.jsonl").code == 2


def test_a_task_is_removed_with_the_fisher_of_its_data_at_the_base(here: Path, run: Run) -> None:
    for data, out in (("base.jsonl", "f-base"), ("math.jsonl", "f-math-at-base")):
        assert run("fisher", "base", "--data", data, "--out", out, "--no-fsync").code == 0
    models = [{"model": "./math", "fisher": "./f-math-at-base", "parameters": {"weight": -1.0}}]
    gradient_matching(here, models=models)
    assert run("merge", "r.yml", "removed", "--no-fsync").code == 0
    base, expert = (load_file(here / name / "model.safetensors") for name in ("base", "math"))
    h0 = {name: 12 * value.double() for name, value in read_checkpoint(here / "f-base").items()}
    ht = {name: 8 * value.double() for name, value in read_checkpoint(here / "f-math-at-base").items()}
    count = sum(value.numel() for value in h0.values())
    prior, floor = (0.01 * sum(float(value.sum()) for value in h.values()) / count for h in (h0, ht))
    found = read_checkpoint(here / "removed")
    for name, value in base.items():
        prior_curvature, removed = h0[name] + prior, ht[name].clamp(min=floor)
        left = torch.maximum(prior_curvature - removed, 0.1 * prior_curvature)
        step = (prior_curvature + removed) / left * (expert[name].double() - value.double())
        torch.testing.assert_close(found[name].double(), value.double() - step, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fishers")
def test_the_fisher_of_another_expert_is_refused(here: Path, run: Run) -> None:
    gradient_matching(here, models=[{"model": "./math", "fisher": "./f-code"}])
    done = run("merge", "r.yml", "merged")
    assert done.code == 3
    assert "f-code was not measured at ./math" in done.err
    assert not (here / "merged").exists()


def test_json_is_all_that_standard_output_gets_and_nothing_is_drawn_into_pipes(here: Path, run: Run) -> None:
    rows = [{"text": "", "label": 0}, {"text": "a b", "label": "x"}, *letters(4)]
    save_rows(here / "d.jsonl", [row | {"label": str(row["label"])} for row in rows])
    done = run("fisher", "base", "--data", "d.jsonl", "--out", "f", "--json", "--no-fsync", "--only", "classifier.*")
    assert (done.code, done.err) == (0, "")
    said = json.loads(done.out)
    assert said["metadata"]["examples"] == "4"
    assert said["unusable"] == {"without text": 1, "with a label that is none of the model's 3": 1}
    assert "bert.embeddings.word_embeddings.weight" in said["unmeasured"]
    quiet = run("fisher", "base", "--data", "base.jsonl", "--out", "g", "--quiet", "--no-fsync", "--parts", 2)
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    told = run("fisher", "base", "--data", "d.jsonl", "--out", "h", "--no-fsync")
    assert told.out == (
        "h: sequence-classification, exact Fisher of 4 examples, standing for 4\n"
        "  text: text, label: label (3 classes), 2 left out\n"
    )
    assert "warning: 1 rows were left out: without text\n" in told.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("base", "--data", "nowhere.jsonl"), 3, "nowhere.jsonl does not exist"),
        (("base", "--data", "empty.jsonl"), 3, "empty.jsonl has no rows"),
        (("base", "--data", "broken.jsonl"), 3, "broken.jsonl: the data cannot be read: JSON parse error"),
        (("base", "--data", "other.jsonl"), 2, "no column holds the text: the data has foo\n  hint: name it with"),
        (("base", "--data", "plain.txt", "--gradient"), 3, "no row of the data can be used: 2 without a label"),
        (("base", "--data", "plain.txt", "--text-column", "txt"), 2, "no column 'txt'\n  hint: did you mean 'text'?"),
        (("base", "--data", "base.jsonl", "--task", "masked-lm"), 3, "which masked-lm needs; they would be random"),
        (("base", "--data", "base.jsonl", "--task", "maskedlm"), 2, "did you mean 'masked-lm'?"),
        (("base", "--data", "base.jsonl", "--only", "clasifier*"), 2, "--only clasifier* matches no tensor of base"),
        (("base", "--data", "base.jsonl", "--dtype", "int8"), 2, "'int8' is not a floating-point dtype"),
        (("bare", "--data", "base.jsonl"), 3, "bare has no tokenizer beside its weights"),
        (("nowhere", "--data", "base.jsonl"), 3, "'nowhere'"),
    ],
)
def test_mistakes_are_told_with_what_to_do(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (here / "empty.jsonl").write_text("")
    (here / "broken.jsonl").write_text('{"text": "a"\n')
    (here / "plain.txt").write_text("a b\nc d\n")
    save_rows(here / "other.jsonl", [{"foo": "a"}])
    (here / "bare").mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(here / "base" / file, here / "bare" / file)
    done = run("fisher", *arguments, "--out", "f", "--no-fsync")
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert not list(here.glob("f*"))


@pytest.mark.parametrize("library", ["transformers", "datasets"])
def test_a_library_that_is_missing_is_named_with_the_way_to_install_it(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    done = run("fisher", "base", "--data", "base.jsonl", "--out", "f")
    assert done.code == 2
    assert f"needs the {library} library\n  hint: pip install 'merge-cli-nn[fisher]'" in done.err


def test_an_output_is_replaced_only_by_force_and_never_where_it_is_the_model(here: Path, run: Run) -> None:
    command = ("fisher", "base", "--data", "base.jsonl", "--no-fsync", "--only", "classifier.*")
    assert run(*command, "--out", "f", "--seed", 1).code == 0
    again = run(*command, "--out", "f", "--seed", 2)
    assert again.code == 2
    assert "f exists" in again.err
    assert run(*command, "--out", "f", "--seed", 2, "--force").code == 0
    assert json.loads(run("inspect", "f", "--json").out)["metadata"]["seed"] == "2"
    shutil.copytree(here / "base", here / "own")
    model = run("fisher", "own", "--data", "base.jsonl", "--out", "own", "--force")
    assert model.code == 2
    assert "own is the model own" in model.err
    assert (here / "own" / "config.json").exists()


def test_a_model_that_lies_where_sums_are_saved_is_refused_and_left_alone(here: Path, run: Run) -> None:
    shutil.copytree(here / "base", here / "f.measuring")
    before = sorted((here / "f.measuring").iterdir())
    done = run("fisher", "f.measuring", "--data", "base.jsonl", "--out", "f")
    assert done.code == 2
    assert "f.measuring is the model f.measuring" in done.err
    assert sorted((here / "f.measuring").iterdir()) == before


def stopping_after(calls: int) -> Callable[..., Any]:
    """Ask this process to terminate while it measures."""

    @contextlib.contextmanager
    def counting(what: str, *, visible: bool) -> Iterator[Callable[[int, int | None], None]]:
        left = calls

        def count(done: int, total: int | None) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGTERM)

        yield count

    return counting


def test_a_terminated_measurement_is_continued_by_the_same_command(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("fisher", "base", "--data", "base.jsonl", "--batch-size", 2, "--gradient", "--estimator", "sampled",
               "--parts", 2, "--checkpoint-every", 2, "--no-fsync")  # fmt: skip
    assert run(*command, "--out", "whole").code == 0
    with monkeypatch.context() as patch:
        # Six batches to a part: in the second part, after its first save.
        patch.setattr(progress, "example_progress", stopping_after(6 + 3))
        stopped = run(*command, "--out", "f")
    assert stopped.code == 143
    assert "what was summed so far is in f.measuring: run the same command again to resume" in stopped.err
    assert "nothing was written" not in stopped.err
    assert not (here / "f").exists()
    changed = run(*command, "--out", "f", "--seed", 5)
    assert changed.code == 2
    assert "f.measuring holds sums of another measurement" in changed.err
    assert run(*command, "--out", "f").code == 0
    for file in ("model.safetensors", "gradient/model.safetensors"):
        assert (here / "f" / file).read_bytes() == (here / "whole" / file).read_bytes()
    assert not (here / "f.measuring").exists()


@pytest.mark.parametrize("parts", [1, 2])
def test_without_any_option_a_terminated_measurement_is_continued_too_and_says_so(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    command = ("fisher", "base", "--data", "base.jsonl", "--batch-size", 2, "--gradient", "--no-fsync",
               "--parts", parts)  # fmt: skip
    whole = run(*command, "--out", "whole")
    assert "resumed" not in whole.out
    with monkeypatch.context() as patch:
        patch.setattr(progress, "example_progress", stopping_after(6 * (parts - 1) + 3))
        stopped = run(*command, "--out", "f")
    assert stopped.code == 143
    assert stopped.err == (
        "error: terminated\n  hint: what was summed so far is in f.measuring: run the same command again to resume\n"
    )
    done = run(*command, "--out", "f")
    assert done.code == 0
    # Three batches of two, or the first part and three batches, but twelve examples are read at a time.
    assert "resumed an interrupted run, of which " in done.out
    for file in ("model.safetensors", "gradient/model.safetensors"):
        assert (here / "f" / file).read_bytes() == (here / "whole" / file).read_bytes()


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ((), "text: premise + hypothesis, label: label (3 classes), 1 of 3 cut at 4 tokens"),
        (("--text-column", "hypothesis"), "text: hypothesis, label: label (3 classes)"),
        (
            ("--text-column", "hypothesis", "--text-column", "premise"),
            "text: hypothesis + premise, label: label (3 classes), 1 of 3 cut at 4 tokens",
        ),
    ],
)
def test_the_columns_used_are_told(here: Path, run: Run, options: tuple[str, ...], columns: str) -> None:
    pairs = [("a b", "c"), ("d", "e f"), ("a b c", "d e f")]
    save_rows(here / "d.jsonl", [{"premise": p, "hypothesis": h, "label": 0} for p, h in pairs])
    command = ("fisher", "base", "--data", "d.jsonl", "--max-length", 4, "--no-fsync", "--only", "classifier.*")
    done = run(*command, *options, "--out", "f")
    assert done.out.splitlines()[1] == f"  {columns}"


def test_a_text_that_would_be_left_out_and_a_label_that_is_not_found_are_told(here: Path, run: Run) -> None:
    save_rows(here / "two.jsonl", [{"text": "a b c d", "title": "e f g h", "label": 0}])
    two = run("fisher", "base", "--data", "two.jsonl", "--out", "f")
    assert two.code == 2
    assert "the text is taken from text, and title would be left out" in two.err
    (here / "d.csv").write_text("sentence,category\na b,1\nc d,1\n")
    named = run("fisher", "base", "--data", "d.csv", "--out", "f", "--gradient")
    assert named.code == 2
    assert named.err == ("error: no label column found among sentence, category\n  hint: --label-column category\n")
    assert run("fisher", "base", "--data", "d.csv", "--out", "f", "--label-column", "category").code == 0


def test_sums_of_data_that_has_changed_are_not_continued(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save_rows(here / "d.jsonl", letters(12))
    command = ("fisher", "base", "--data", "d.jsonl", "--batch-size", 2, "--checkpoint-every", 1, "--no-fsync",
               "--only", "classifier.*", "--out", "f")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(progress, "example_progress", stopping_after(3))
        assert run(*command).code == 143
    save_rows(here / "d.jsonl", letters(13)[1:])
    done = run(*command)
    assert done.code == 3
    assert "d.jsonl has changed since the sums in f.measuring were saved" in done.err


def test_two_measurements_cannot_share_their_sums(here: Path, run: Run) -> None:
    (here / "f.measuring").mkdir()
    with (here / "f.measuring" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run("fisher", "base", "--data", "base.jsonl", "--out", "f")
    assert done.code == 75
    assert "another process is measuring into f.measuring" in done.err
    assert (here / "f.measuring").is_dir()


def test_a_folder_that_no_measurement_has_made_is_left_alone(here: Path, run: Run) -> None:
    (here / "f.measuring").mkdir()
    (here / "f.measuring" / "mine.txt").write_text("kept")
    done = run("fisher", "base", "--data", "base.jsonl", "--out", "f")
    assert done.code == 2
    assert "f.measuring is in the way" in done.err
    assert (here / "f.measuring" / "mine.txt").read_text() == "kept"


def test_second_moments_are_imported_and_asked_for_what_they_lack(here: Path, run: Run) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(here / "math")
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.5))
    for value in model.parameters():
        value.grad = torch.full_like(value, 3.0)
    optimizer.step()
    torch.save(optimizer.state_dict(), here / "optimizer.pt")
    command = ("fisher", "import", "math", "optimizer.pt", "--out", "f", "--no-fsync", "--train-examples", 50)
    lacking = run(*command)
    assert lacking.code == 2
    assert "--batch-size is needed" in lacking.err
    done = run(*command, "--batch-size", 4, "--json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["metadata"]["steps"] == "1"
    # v = 0.5 * 9, corrected by 1 - 0.5, times 4 examples to a step.
    assert all(bool((value == 36).all()) for value in read_checkpoint(here / "f").values())
    (here / "trainer_state.json").write_text('{"train_batch_size": 4}')
    told = run("fisher", "import", "math", ".", "--out", "g", "--no-fsync", "--train-examples", 50)
    assert (told.code, told.err) == (0, "")
    assert "1 steps (optimizer.pt) of 4 examples (trainer_state.json), beta2 0.5" in told.out


def test_the_help_says_what_a_batch_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    text = " ".join(run("fisher", "import", "--help").out.replace("│", " ").split())
    assert "Examples per optimizer step in all: over all devices and accumulated passes" in text
