"""Two small families of transformers models, each a base, three domains to fine-tune on and a head that they share.

A language model that reads bytes (Llama), on the texts of the demonstration, and an image classifier (ViT), on drawn
digits whose look shifts from domain to domain. Parameters are flat float64 vectors here: what is compared are formulas.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from merge_cli.demo import byte_lm
from merge_cli.demo.corpus import Sizes, load_domains
from merge_cli.fisher.likelihood import Estimator, Likelihood, Task
from merge_cli.fisher.objective import Batch
from merge_cli.fisher.squared_gradients import SquaredGradients
from tests.experiments.digits import SHIFTS, draw

_BATCH = 32
_EVALUATION_BATCH = 128


@dataclass(frozen=True)
class Data:
    """Examples and their labels."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, which: Any) -> Data:
        return Data(self.inputs[which], self.labels[which])


def joined(parts: Sequence[Data]) -> Data:
    return Data(torch.cat([part.inputs for part in parts]), torch.cat([part.labels for part in parts]))


@dataclass(frozen=True)
class Split:
    train: Data
    validation: Data
    test: Data


@dataclass(frozen=True)
class Score:
    """Mean loss per label, in nats, and the share of labels that were the first guess."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Family:
    """A kind of model and its data.

    Attributes:
        name: Of the family.
        task: What it predicts.
        argument: What the model calls its input.
        new: From a seed to an untrained model.
        domains: The base's own first; the base's training set holds a share of the others'.
        base_train: What the base is trained on.
        removable: What the base has seen of the first expert's domain.
        rates: Largest learning rates of base and experts.
        steps: Regime -> steps; ``base`` among them.
    """

    name: str
    task: Task
    argument: str
    new: Callable[[int], Any]
    domains: Mapping[str, Split]
    base_train: Data
    removable: Data
    rates: tuple[float, float]
    steps: Mapping[str, int]

    @property
    def experts(self) -> list[str]:
        return list(self.domains)[1:]

    @property
    def control(self) -> str:
        return next(iter(self.domains))

    def losses(self, model: Any, data: Data) -> Tensor:
        """Return the loss of each example, summed over its labels."""
        logits, labels = self._predict(model, data)
        flat = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        return flat.view(len(data), -1).sum(dim=1)

    @torch.inference_mode()
    def score(self, model: Any, data: Data) -> Score:
        loss = correct = count = 0.0
        for start in range(0, len(data), _EVALUATION_BATCH):
            logits, labels = self._predict(model, data.take(slice(start, start + _EVALUATION_BATCH)))
            loss += float(functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum"))
            correct += float((logits.argmax(dim=-1) == labels).sum())
            count += labels.numel()
        return Score(loss / count, correct / count)

    def _predict(self, model: Any, data: Data) -> tuple[Tensor, Tensor]:
        logits = model(**{self.argument: data.inputs}).logits
        if self.task is Task.CAUSAL_LM:
            return logits[:, :-1], data.labels[:, 1:]
        return logits, data.labels

    def fisher(self, model: Any, data: Data, *, examples: int, seed: int, draws: int = 1) -> Tensor:
        """Return the mean Fisher diagonal: exact for classes, sampled for texts."""
        some = data.take(_some(len(data), examples, seed))
        exact = self.task is not Task.CAUSAL_LM
        objective = Likelihood(self.task, Estimator.EXACT if exact else Estimator.SAMPLED, draws, seed)
        measured = copy.deepcopy(model)
        squares = SquaredGradients(measured, dict(measured.named_parameters()))
        for start in range(0, len(some), _BATCH):
            part = some.take(slice(start, start + _BATCH))
            keys = tuple(range(start, start + len(part)))
            squares.add(Batch({self.argument: part.inputs}, keys, part.labels), objective)
        return torch.cat([squares.totals[name].flatten().double() for name in squares.totals]) / len(some)

    def gradient(self, model: Any, data: Data, *, examples: int | None = None, seed: int = 0) -> Tensor:
        """Return the gradient of the loss summed over the data, estimated from ``examples`` of it; None for all."""
        some = data if examples is None else data.take(_some(len(data), examples, seed))
        model.zero_grad(set_to_none=True)
        for start in range(0, len(some), _EVALUATION_BATCH):
            self.losses(model, some.take(slice(start, start + _EVALUATION_BATCH))).sum().backward()
        flat = torch.cat([parameter.grad.flatten().double() for parameter in model.parameters()])
        model.zero_grad(set_to_none=True)
        return flat * (len(data) / len(some))

    def curvature_along(
        self, model: Any, at: Tensor, directions: Tensor, data: Data, *, examples: int, seed: int
    ) -> Tensor:
        """Return <d, F d> for each direction d, with F the whole mean Fisher at ``at`` and not its diagonal.

        That is the mean squared derivative along d of the log-likelihood of a label that the model draws.
        """
        some = data.take(_some(len(data), examples, seed))
        drawn = self._draw(put(model, at), some, seed)
        found = []
        for direction in directions:
            step = 1e-2
            with torch.inference_mode():
                ahead = self.losses(put(model, at + step * direction), drawn).double()
                behind = self.losses(put(model, at - step * direction), drawn).double()
            found.append(((ahead - behind) / (2 * step)).square().mean())
        return torch.stack(found)

    @torch.inference_mode()
    def _draw(self, model: Any, data: Data, seed: int) -> Data:
        """Replace the labels by ones that the model draws."""
        logits, _ = self._predict(model, data)
        noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)).clamp(min=1e-12)
        drawn = (logits - (-noise.log()).log()).argmax(dim=-1)
        if self.task is Task.CAUSAL_LM:
            drawn = torch.cat([data.labels[:, :1], drawn], dim=1)
        return Data(data.inputs, drawn)

    def train(self, model: Any, data: Data, regime: str, *, seed: int, anchor: Anchor | None = None) -> Any:
        """Train in place with Adam and a falling rate; ``anchor`` adds eq. 8's penalty to the summed loss."""
        steps, rate = self.steps[regime], self.rates[regime != "base"]
        generator = torch.Generator().manual_seed(seed)
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
        order = torch.empty(0, dtype=torch.long)
        model.train()
        labels = data.labels[0].numel()
        for step in range(steps):
            if len(order) < _BATCH:
                order = torch.randperm(len(data), generator=generator)
            which, order = order[:_BATCH], order[_BATCH:]
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 20) * (1 - 0.95 * step / steps)
            loss = self.losses(model, data.take(which)).mean()
            if anchor is not None:
                loss = loss + anchor.penalty(parameters) / len(data)
            optimizer.zero_grad(set_to_none=True)
            (loss / labels).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        return model.eval()


class Anchor:
    """Half the squared distance to the base in the metric of H_0: the penalty of eq. 8."""

    def __init__(self, model: Any, curvature: Tensor) -> None:
        parameters = list(model.parameters())
        sizes = [parameter.numel() for parameter in parameters]
        self._centres = [parameter.detach().clone() for parameter in parameters]
        parts = zip(curvature.float().split(sizes), parameters, strict=True)
        self._curvature = [part.view_as(parameter) for part, parameter in parts]

    def penalty(self, parameters: Sequence[Tensor]) -> Tensor:
        each = zip(self._curvature, parameters, self._centres, strict=True)
        terms = [(curvature * (parameter - centre).square()).sum() for curvature, parameter, centre in each]
        return torch.stack(terms).sum() / 2


def flat_of(model: Any) -> Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in model.parameters()])


def put(model: Any, flat: Tensor) -> Any:
    """Write a flat vector into a model, and return it."""
    torch.nn.utils.vector_to_parameters(flat.float(), model.parameters())
    return model


def _some(count: int, examples: int, seed: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:examples]


def language_model(seed: int, *, quick: bool = False) -> Family:
    """Texts of four kinds; half of each expert's training set is in the base's."""
    sizes = Sizes(160, 96, 32, 32) if quick else Sizes(16_000, 1000, 80, 256)
    domains = {}
    for domain in load_domains(sizes, seed=seed):
        parts = (byte_lm.encode(texts) for texts in (domain.train, domain.validation, domain.test))
        domains[domain.name] = Split(*(Data(tokens, tokens) for tokens in parts))
    steps = {"base": 360, "anchored": 160, "early": 50, "converged": 260}
    return Family(
        "language model", Task.CAUSAL_LM, "input_ids", lambda seed: byte_lm.new_model(seed, hidden=56), domains,
        *_base_train(domains), (6e-3, 1e-3), {name: 4 if quick else count for name, count in steps.items()},
    )  # fmt: skip


def classifier(seed: int, *, quick: bool = False) -> Family:
    """Drawn digits; each expert's domain changes how they look."""
    counts = (96, 32, 32) if quick else (1000, 500, 1500)
    domains = {}
    for number, shift in enumerate(SHIFTS):
        sizes = (counts[0] * (1 if number else 20), *counts[1:])
        images, labels = draw(shift, sum(sizes), seed=1000 * seed + number)
        parts = zip(images.split(sizes), labels.split(sizes), strict=True)
        domains[shift] = Split(*(Data(*part) for part in parts))
    steps = {"base": 1200, "anchored": 400, "early": 60, "converged": 500}
    return Family(
        "classifier", Task.IMAGE_CLASSIFICATION, "pixel_values", _new_vit, domains,
        *_base_train(domains), (3e-3, 1e-3), {name: 4 if quick else count for name, count in steps.items()},
    )  # fmt: skip


def _base_train(domains: Mapping[str, Split]) -> tuple[Data, Data]:
    """The base's own domain and half of each of the others; and that half of the first."""
    own, *others = (split.train for split in domains.values())
    halves = [part.take(slice(0, len(part) // 2)) for part in others]
    return joined([own, *halves]), halves[0]


def _new_vit(seed: int) -> Any:
    transformers, _ = byte_lm.libraries()
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=12, patch_size=3,
        num_channels=1, num_labels=10, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.ViTForImageClassification(config).eval()
