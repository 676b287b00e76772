"""Gradient mismatch, joint gradient and fidelity on data, against sums over single examples by torch.autograd."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from merge_cli import CheckpointError, RecipeError, build_plan
from merge_cli.fisher import Columns, FisherSettings, Source
from merge_cli.mismatch import MeasuredMismatch, measure_mismatch
from merge_cli.mismatch.measuring import columns_of
from merge_cli.report import mismatch_report
from tests.checkpoints import recipe_over, write_checkpoint
from tests.fisher.folders import WORDS, letters, save_bert, save_rows

EXAMPLES = (100, 200)
BASE_EXAMPLES = 50
PRIOR = 3.0
Tensors = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a cache of data of its own, and one thread: tiny matrices gain nothing from more."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Family:
    """A base, two experts that lie ``spread`` from it, their Fishers of about ``curvature``, and their data."""

    def __init__(self, folder: Path, *, spread: float = 0.02, curvature: float = 1.0) -> None:
        self.folder = folder
        save_bert(folder / "base", num_hidden_layers=1)
        generator = torch.Generator().manual_seed(0)
        base = load_file(folder / "base" / "model.safetensors")

        def drawn() -> Tensors:
            return {name: torch.randn(value.shape, generator=generator) for name, value in base.items()}

        self.models = {"base": base}
        self.fishers: list[Tensors] = []
        for i in range(3):
            self.fishers.append({name: curvature * value.square() for name, value in drawn().items()})
            examples = (BASE_EXAMPLES, *EXAMPLES)[i]
            said = {"kind": "fisher", "reduction": "mean", "train_examples": str(examples)}
            write_checkpoint(folder / f"fisher-{i}", self.fishers[i], metadata=said)
        for i in (1, 2):
            save_bert(folder / f"expert-{i}", num_hidden_layers=1)
            self.models[f"expert-{i}"] = {name: base[name] + spread * value for name, value in drawn().items()}
            path = folder / f"expert-{i}" / "model.safetensors"
            save_file(self.models[f"expert-{i}"], path, metadata={"format": "pt"})
        self.rows = [[row | {"label": (row["label"] + i) % 3} for row in letters(6)] for i in range(2)]
        self.data = [str(save_rows(folder / f"rows-{i}.jsonl", rows)) for i, rows in enumerate(self.rows)]

    def change(self, name: str, bias: tuple[float, float, float]) -> None:
        """Let a model's outputs be its bias, whatever goes in."""
        tensors = self.models[name]
        tensors["classifier.weight"].zero_()
        tensors["classifier.bias"].copy_(torch.tensor(bias))
        save_file(tensors, self.folder / name / "model.safetensors", metadata={"format": "pt"})

    def measure(self, weights: tuple[float, float], **more: Any) -> MeasuredMismatch:
        models = [
            {"model": f"./expert-{i}", "fisher": f"./fisher-{i}", "parameters": {"weight": weights[i - 1]}}
            for i in (1, 2)
        ]
        content = {
            "merge_method": "gradient_matching", "base_model": "./base", "base_fisher": "./fisher-0", "models": models,
            "parameters": {"prior_precision": PRIOR, "curvature_floor": 0, "anchor": "base"},
        }  # fmt: skip
        plan = build_plan(recipe_over(self.folder, content | more))
        settings = FisherSettings("", Source(""), batch_size=4)
        return measure_mismatch(plan, self.data, settings, prior_precision=PRIOR)

    def loss_and_gradient(self, weights: Tensors, task: int) -> tuple[float, Tensors]:
        """Negative log-likelihood of the labels, summed over the training set that the rows are a sample of."""
        model = AutoModelForSequenceClassification.from_pretrained(self.folder / "base")
        model.load_state_dict({name: value.float() for name, value in weights.items()})
        total = torch.zeros(())
        for row in self.rows[task]:
            ids = torch.tensor([[WORDS.index(word) for word in row["text"].split()]])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
            total = total - torch.log_softmax(logits, dim=-1)[row["label"]] * EXAMPLES[task] / len(self.rows[task])
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(total, list(named.values()))
        return total.item(), {name: g.double() for name, g in zip(named, gradients, strict=True)}

    def curvature(self, i: int) -> Tensors:
        """H_0 with the prior precision, or H_i."""
        examples, prior = (BASE_EXAMPLES, *EXAMPLES)[i], PRIOR if i == 0 else 0.0
        return {name: examples * value.double() + prior for name, value in self.fishers[i].items()}

    def merged(self, weights: tuple[float, float]) -> dict[str, Tensors]:
        """The three merges, by their equations."""
        base, one, two = ({k: v.double() for k, v in each.items()} for each in self.models.values())
        h = [self.curvature(i) for i in range(3)]
        found: dict[str, Tensors] = {"linear": {}, "task_arithmetic": {}, "gradient_matching": {}}
        for name in base:
            deltas = one[name] - base[name], two[name] - base[name]
            found["linear"][name] = (one[name] + two[name]) / 2
            found["task_arithmetic"][name] = base[name] + weights[0] * deltas[0] + weights[1] * deltas[1]
            precision = h[0][name] + weights[0] * h[1][name] + weights[1] * h[2][name]
            pulls = (w * (h[0][name] + h[i][name]) * d for i, w, d in zip((1, 2), weights, deltas, strict=True))
            found["gradient_matching"][name] = base[name] + sum(pulls) / precision
        return found


def test_what_is_measured_is_what_single_examples_add_up_to(tmp_path: Path) -> None:
    weights = (0.7, 0.4)
    family = Family(tmp_path)
    found = family.measure(weights)
    own = [family.loss_and_gradient(family.models[f"expert-{i}"], i - 1) for i in (1, 2)]
    prior = family.curvature(0)
    for scheme, merged in family.merged(weights).items():
        there = [family.loss_and_gradient(merged, task) for task in (0, 1)]
        mismatch, joint, predicted = 0.0, 0.0, 0.0
        for name, value in merged.items():
            gap = sum(weights[t] * (there[t][1][name] - own[t][1][name]) for t in (0, 1))
            step = value - family.models["base"][name].double()
            slope = sum(weights[t] * there[t][1][name] for t in (0, 1)) + prior[name] * step
            mismatch += float((gap.square() / prior[name]).sum())
            joint += float((slope.square() / prior[name]).sum())
            for t in (0, 1):
                delta = value - family.models[f"expert-{t + 1}"][name].double()
                bend = 0.5 * family.curvature(t + 1)[name] * delta.square()
                predicted += float((own[t][1][name] * delta + bend).sum())
        increase = sum(there[t][0] - own[t][0] for t in (0, 1))
        values = {what: numbers[scheme] for what, numbers in found.values.items()}
        for t, data in enumerate(family.data):
            assert found.losses[data][scheme] == pytest.approx(there[t][0] / EXAMPLES[t], rel=1e-4)
            assert found.losses[data]["alone"] == pytest.approx(own[t][0] / EXAMPLES[t], rel=1e-4)
        assert values == {
            "gradient mismatch": pytest.approx(math.sqrt(mismatch), rel=1e-3),
            "joint gradient": pytest.approx(math.sqrt(joint), rel=1e-3),
            "loss increase": pytest.approx(increase, rel=1e-2, abs=1e-3),
            "fidelity": pytest.approx(increase / predicted, rel=1e-2, abs=1e-4),
        }, scheme


def test_a_single_model_taken_whole_has_no_mismatch_and_no_fidelity(tmp_path: Path) -> None:
    family = Family(tmp_path)
    family.data = family.data[:1]
    models = [{"model": "./expert-1", "fisher": "./fisher-1"}]
    found = family.measure((1.0, 1.0), models=models)
    for scheme in ("linear", "task_arithmetic", "gradient_matching"):
        assert found.values["gradient mismatch"][scheme] == pytest.approx(0, abs=1e-2)
        assert found.values["loss increase"][scheme] == pytest.approx(0, abs=1e-3)
        assert found.values["fidelity"][scheme] is None
    assert found.warnings == ()


def test_losses_that_grow_more_than_the_quadratic_model_says_are_warned_of_with_what_to_use(tmp_path: Path) -> None:
    # Classifiers of a bias alone, each of them sure of the one label of its data, so that neither slope nor curvature
    # shows there. Task arithmetic, and gradient matching as its limit, give biases (20, 10, 0): 200 examples of the
    # second label cost 10 each. The average gives (10, 10, 0): 300 examples cost log 2 each.
    family = Family(tmp_path, curvature=1e-9)
    for i, bias in ((1, (20.0, 0.0, 0.0)), (2, (0.0, 20.0, 0.0))):
        family.change(f"expert-{i}", bias)
        family.rows[i - 1] = [row | {"label": i - 1} for row in letters(6)]
        save_rows(Path(family.data[i - 1]), family.rows[i - 1])
    family.change("base", (0.0, 0.0, 0.0))
    found = family.measure((1.0, 0.5))
    assert found.values["loss increase"] == {
        "linear": pytest.approx(300 * math.log(2), rel=1e-3),
        "task_arithmetic": pytest.approx(2000, rel=1e-3),
        "gradient_matching": pytest.approx(2000, rel=1e-3),
    }
    [warning] = found.warnings
    assert "grow by 2000, far more than the quadratic model behind gradient matching says" in warning
    assert "lower the weights towards 0.5, set box: true, or use linear, which raises the losses least" in warning


def mean_loss(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean negative log-likelihood of the labels, one row at a time."""
    total = 0.0
    for row in rows:
        ids = torch.tensor([[WORDS.index(word) for word in row["text"].split()]])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].detach()
        total -= float(torch.log_softmax(logits, dim=-1)[row["label"]]) / len(rows)
    return total


class Heads:
    """Classifiers of three and of two classes, each with a head and pooler of its own, over a language model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        save_bert(folder / "base", "BertForMaskedLM", num_hidden_layers=1)
        self.base = load_file(folder / "base" / "model.safetensors")
        self.rows = [[row | {"label": row["label"] % classes} for row in letters(6)] for classes in (3, 2)]
        self.data = [str(save_rows(folder / f"rows-{i}.jsonl", rows)) for i, rows in enumerate(self.rows)]
        generator = torch.Generator().manual_seed(1)
        for i, classes in ((1, 3), (2, 2)):
            path = save_bert(folder / f"expert-{i}", num_hidden_layers=1, num_labels=classes) / "model.safetensors"
            tensors = load_file(path)
            for name, value in tensors.items():
                start = self.base.get(name, value)
                tensors[name] = start + 0.05 * torch.randn(value.shape, generator=generator)
            save_file(tensors, path, metadata={"format": "pt"})
            said = {"kind": "fisher", "reduction": "mean", "train_examples": "100"}
            write_checkpoint(
                folder / f"fisher-{i}", {name: value.square() for name, value in tensors.items()}, metadata=said
            )

    def measure(self, data: list[str] | None = None, **more: Any) -> MeasuredMismatch:
        models = [{"model": f"./expert-{i}", "fisher": f"./fisher-{i}"} for i in (1, 2)]
        content = {
            "merge_method": "gradient_matching", "base_model": "./base", "models": models,
            "parameters": {"prior_precision": PRIOR, "anchor": "base", "curvature_floor": 0, "weight": 0.5},
            "exclude": [{"pattern": "cls.*", "drop": True}, {"pattern": "classifier.*", "from": "./expert-1"},
                        {"pattern": "bert.pooler.*", "from": "./expert-1"}],
        }  # fmt: skip
        plan = build_plan(recipe_over(self.folder, content | more))
        settings = FisherSettings("", Source(""), batch_size=4)
        return measure_mismatch(plan, data or self.data, settings, prior_precision=PRIOR)


def test_classifiers_over_a_language_model_are_measured_each_with_its_own_head(tmp_path: Path) -> None:
    heads = Heads(tmp_path)
    found = heads.measure()
    tensors = [load_file(tmp_path / f"expert-{i}" / "model.safetensors") for i in (1, 2)]
    for i, (data, rows) in enumerate(zip(heads.data, heads.rows, strict=True)):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"expert-{i + 1}").eval()
        assert found.losses[data]["alone"] == pytest.approx(mean_loss(model, rows), rel=1e-4)
        body = {name: (tensors[0][name] + tensors[1][name]) / 2 for name in tensors[0] if name in heads.base}
        assert len(body) > 10
        model.load_state_dict(tensors[i] | body)
        assert found.losses[data]["linear"] == pytest.approx(mean_loss(model, rows), rel=1e-4)
    assert all(math.isfinite(value or 0) for numbers in found.values.values() for value in numbers.values())


def test_each_data_set_has_columns_of_its_own(tmp_path: Path) -> None:
    heads = Heads(tmp_path)
    plain = heads.measure()
    renamed = [{"sentence": row["text"], "category": row["label"], "text": "h h h"} for row in heads.rows[1]]
    other = f"{save_rows(tmp_path / 'b.jsonl', renamed)}:text=sentence,label=category"
    assert list(heads.measure([heads.data[0], other]).losses[other].values()) == pytest.approx(
        list(plain.losses[heads.data[1]].values())
    )


def test_heads_of_different_kinds_are_measured_each_on_its_own_data(tmp_path: Path) -> None:
    heads = Heads(tmp_path)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tmp_path / "base" / name, tmp_path / "expert-2" / name)
    said = {"kind": "fisher", "reduction": "mean", "train_examples": "100"}
    fisher = {name: value.square() for name, value in heads.base.items()}
    write_checkpoint(tmp_path / "fisher-2", fisher, metadata=said)
    exclude = [{"pattern": "cls.*", "from": "./expert-2"}, {"pattern": "classifier.*", "from": "./expert-1"},
               {"pattern": "bert.pooler.*", "from": "./expert-1"}]  # fmt: skip
    found = heads.measure(exclude=exclude)
    classes, words = (found.losses[data] for data in heads.data)
    # The second model is the base: half-way to it is half-way back for the first.
    body = load_file(tmp_path / "expert-1" / "model.safetensors")
    halfway = {name: (value + heads.base.get(name, value)) / 2 for name, value in body.items()}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "expert-1").eval()
    model.load_state_dict(halfway)
    assert classes["linear"] == pytest.approx(mean_loss(model, heads.rows[0]), rel=1e-4)
    assert words["linear"] != pytest.approx(words["alone"], rel=1e-4)


def test_the_average_is_measured_where_the_recipe_leaves_out_what_only_the_base_has(tmp_path: Path) -> None:
    family = Family(tmp_path)
    path = tmp_path / "base" / "model.safetensors"
    save_file(load_file(path) | {"extra.weight": torch.ones(2)}, path, metadata={"format": "pt"})
    found = family.measure((0.7, 0.4), exclude=[{"pattern": "extra.*", "drop": True}])
    assert found.values["loss increase"]["linear"] == pytest.approx(
        Family(tmp_path / "again").measure((0.7, 0.4)).values["loss increase"]["linear"], rel=1e-3
    )


def test_the_report_says_what_its_numbers_come_to() -> None:
    sums = {
        "layers.0.w": {"mismatch_linear": 9.0, "mismatch_task_arithmetic": 16.0},
        "layers.1.w": {"mismatch_linear": 16.0, "mismatch_task_arithmetic": 128.0},
    }
    found = mismatch_report(sums)
    assert found.forecast == ("linear", "task_arithmetic")
    assert found.verdicts() == (
        "task arithmetic is expected to be worse than the average (mismatch 12, 5)",
        "gradient matching has a mismatch of 0 by construction; --data measures what it has in truth",
    )
    [removal] = mismatch_report(sums, removes=True).verdicts()
    assert removal.startswith("gradient matching has a mismatch of 0 by construction")
    boxed = mismatch_report({"w": {**sums["layers.0.w"], "mismatch_gradient_matching": 4.0}})
    assert boxed.forecast == ("linear", "task_arithmetic", "gradient_matching")
    assert len(boxed.verdicts()) == 1
    losses = {
        "a": {"alone": 0.1, "linear": 0.4, "task_arithmetic": 0.6, "gradient_matching": 0.3},
        "b": {"alone": 0.1, "linear": 0.6, "task_arithmetic": 0.6, "gradient_matching": 0.4},
    }
    assert mismatch_report(sums, {}, losses).verdicts()[-1] == (
        "measured, gradient matching has the least mean loss: 0.35 nats per example, 0.5 for the average, 0.6 for task "
        "arithmetic"
    )


def test_there_must_be_one_data_set_for_each_model(tmp_path: Path) -> None:
    family = Family(tmp_path)
    family.data = family.data[:1]
    with pytest.raises(RecipeError, match="--data is given 1 times, the recipe has 2 models"):
        family.measure((1.0, 1.0))


def test_data_without_labels_cannot_be_measured_on(tmp_path: Path) -> None:
    family = Family(tmp_path)
    save_rows(Path(family.data[1]), [{"text": row["text"]} for row in letters(4)])
    with pytest.raises(CheckpointError, match="no row of the data can be used: 4 without a label"):
        family.measure((1.0, 1.0))


def test_text_columns_behind_a_data_set_make_a_pair() -> None:
    otherwise = Columns(text="text", label="gold")
    assert columns_of("a.csv:text=one,text=two", otherwise) == ("a.csv", Columns(text=("one", "two"), label="gold"))
    assert columns_of("a.csv:label=kind", otherwise)[1].texts == ("text",)
    with pytest.raises(RecipeError, match="only text columns may be named twice"):
        columns_of("a.csv:label=one,label=two", otherwise)
