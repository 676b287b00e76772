"""What a Fisher costs beside a training step, a loop over single examples, and vmap(grad).

    python tests/benchmarks/fisher_speed.py [bert16] [bert128] [llama] [small] [--vmap] [--threads 1] [--only ours]

Prints seconds, the least of the repeats since other work on the machine only ever adds, and the peak of memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from merge_cli.fisher.likelihood import Estimator, Likelihood, Task
from merge_cli.fisher.objective import Batch
from merge_cli.fisher.squared_gradients import SquaredGradients

SIZES = {"bert16": 16, "bert128": 128, "llama": 128, "small": 16}


def build(case: str) -> tuple[nn.Module, Batch, Likelihood]:
    torch.manual_seed(0)
    tokens = SIZES[case]
    if case == "llama":
        config: Any = LlamaConfig(
            vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=9, num_attention_heads=12,
            num_key_value_heads=12, use_cache=False, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        model: nn.Module = LlamaForCausalLM(config)
        batch_size, task = 4, Task.CAUSAL_LM
    else:
        width, layers = (768, 6) if case != "small" else (128, 2)
        config = BertConfig(num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width, num_labels=2,
                            num_attention_heads=width // 64, use_cache=False)  # fmt: skip
        model = BertForSequenceClassification(config)
        batch_size, task = 16, Task.SEQUENCE_CLASSIFICATION
    ids = torch.randint(1000, 30000, (batch_size, tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = ids if task is Task.CAUSAL_LM else torch.zeros(batch_size, dtype=torch.long)
    batch = Batch(inputs, tuple(range(batch_size)), labels)
    return model.eval(), batch, Likelihood(task, Estimator.SAMPLED)


def plain(model: nn.Module, batch: Batch, objective: Likelihood) -> None:
    """One batched forward and backward pass, as training makes it."""
    outputs = model(**batch.inputs)
    with torch.no_grad():
        [target] = objective.targets(outputs, batch)
    objective.losses(outputs, target).mean().backward()
    for parameter in model.parameters():
        parameter.grad = None


def loop(model: nn.Module, batch: Batch, objective: Likelihood, totals: list[Tensor]) -> None:
    """What people write: batches of one, squares of the gradients."""
    for row in range(batch.size):
        one = batch.take([row])
        outputs = model(**one.inputs)
        with torch.no_grad():
            [target] = objective.targets(outputs, one)
        gradients = torch.autograd.grad(
            objective.losses(outputs, target).sum(), list(model.parameters()), allow_unused=True
        )
        for total, gradient in zip(totals, gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient)


def vmapped(model: nn.Module, batch: Batch, objective: Likelihood) -> None:
    """torch.func: per-example gradients of the whole model at once, for 4 examples at a time to fit in memory."""
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    with torch.no_grad():
        [target] = objective.targets(model(**batch.inputs), batch)

    def one_loss(weights: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, weights, (), {"input_ids": ids[None]})
        losses = objective.losses(outputs, type(target)(labels[None]))
        return losses.sum()

    per_example = torch.func.vmap(torch.func.grad(one_loss), in_dims=(None, 0, 0))
    for start in range(0, batch.size, 4):
        some = slice(start, start + 4)
        gradients = per_example(parameters, batch.inputs["input_ids"][some], target.labels[some])
        for gradient in gradients.values():
            gradient.square_().sum(dim=0)


def least_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Wall-clock seconds; with one thread those of the processor, which other work on the machine does not lengthen."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    work()
    taken = []
    for _ in range(repeats):
        start = clock()
        work()
        taken.append(clock() - start)
    return min(taken)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def run(case: str, options: argparse.Namespace) -> None:
    model, batch, objective = build(case)
    weights = sum(parameter.numel() for parameter in model.parameters()) * 4 / 1e6
    if options.only == "plain":
        step = least_seconds(lambda: plain(model, batch, objective), options.repeats)
        print(f"{case}: weights {weights:.0f} MB, peak {peak_mb():.0f} MB, plain {step:.3f} s", flush=True)
        return
    squares = SquaredGradients(model, dict(model.named_parameters()))
    ours = least_seconds(lambda: squares.add(batch, objective), options.repeats)
    line = f"{case}: weights {weights:.0f} MB, peak {peak_mb():.0f} MB, ours {ours:.3f} s"
    if options.only != "ours":
        model.requires_grad_(True)
        step = least_seconds(lambda: plain(model, batch, objective), options.repeats)
        line += f" = {ours / step:.2f} x plain ({step:.3f} s)"
        totals = [torch.zeros_like(parameter) for parameter in model.parameters()]
        single = least_seconds(lambda: loop(model, batch, objective, totals), 1)
        line += f"; loop {single:.3f} s = {single / ours:.1f} x ours"
    print(line, flush=True)
    if options.vmap:
        taken = least_seconds(lambda: vmapped(model, batch, objective), 1)
        print(f"{case}: vmap(grad) {taken:.3f} s = {taken / ours:.1f} x ours", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(SIZES))
    parser.add_argument("--vmap", action="store_true", help="also torch.func vmap(grad)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", choices=["ours", "plain"], help="one of them alone, for its peak of memory")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    for case in options.cases or ["bert16", "bert128", "llama"]:
        run(case, options)


if __name__ == "__main__":
    main()
