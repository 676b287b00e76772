"""Keys and methods of mergekit's recipes that this version does not read, and what to do instead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merge_cli.errors import RecipeError
from merge_cli.methods import method_names
from merge_cli.recipe.explaining import joined
from merge_cli.recipe.schema import Origin

# Key -> what it asks for, what to do instead.
UNREAD_KEYS = {
    "slices": (
        "merging layer ranges (slices)",
        "list whole models under `models:`; a list such as `weight: [0.2, 0.8]` is interpolated over the layers",
    ),
    "modules": ("merging several modules (modules)", "write a recipe for each module, with its folder as the model"),
    "tokenizer": (
        "building a tokenizer",
        "remove the key: the output gets the base's tokenizer, else the first model's",
    ),
    "tokenizer_source": (
        "building a tokenizer",
        "remove the key: the output gets the base's tokenizer, else the first model's",
    ),
    "chat_template": (
        "setting a chat template",
        "remove `chat_template:`; the output gets the template beside the weights of the base, else of the first model",
    ),
    "experts": ("building a mixture of experts", "merge the models into one dense model, with `models:`"),
    "gate_mode": ("building a mixture of experts", "merge the models into one dense model, with `models:`"),
}
ADAPTER_HINT = "merge the adapter into its base first: peft's merge_and_unload, then save_pretrained"
_DELLA = "drops all deltas with one probability, where {} spares the larger ones"
# Method that mergekit has under this name and this version does not -> what comes close.
UNREAD_METHODS = {
    "arcee_fusion": "ties, which keeps the largest deltas by `density`, comes close",
    "breadcrumbs_ties": "breadcrumbs drops the same deltas; ties settles conflicts between the models by sign",
    "della": f"dare_ties {_DELLA.format('della')}",
    "della_linear": f"dare_linear {_DELLA.format('della_linear')}",
    "karcher": "slerp is the same for two models; for more, linear averages them",
    "model_stock": "task_arithmetic with `normalize: true` averages the models, and `lambda` says how far",
    "multislerp": "slerp is for two models; for more, linear averages them",
    "nearswap": "slerp or linear with a small share of the second model comes close",
    "nuslerp": "slerp with `t` = the second model's share of the weights merges two models; for more, use linear",
    "ram": "ties settles conflicts between the models by sign",
    "ramplus_tl": "ties settles conflicts between the models by sign",
    "sce": "ties settles conflicts between the models by sign, and `density` selects",
}
# Parameters of mergekit's methods that none of ours has; published recipes carry them along.
UNUSED_PARAMETERS = frozenset(
    {
        *("int8_mask", "epsilon", "select_topk", "filter_wise", "max_iter", "tol", "eps", "r", "alpha"),
        *("nuslerp_flatten", "nuslerp_row_wise", "normalize_weights", "embed_slerp"),
    }
)


def refuse_unsupported(data: dict[str, Any], origin: Origin) -> None:
    """Name everything that the recipe asks for and this version does not do."""
    found = [
        (f"{origin.at(key)}: {what} is not supported yet", instead)
        for key, (what, instead) in UNREAD_KEYS.items()
        if key in data
    ]
    method = data.get("merge_method")
    if isinstance(method, str) and method in UNREAD_METHODS.keys() - set(method_names()):
        found.append(
            (f"{origin.at('merge_method')}: the method '{method}' is not supported yet", UNREAD_METHODS[method])
        )
    adapters = [(place, name) for place, name in _references(data) if isinstance(name, str) and "+" in name]
    found += [
        (f"{origin.at(*place)}: a model with a LoRA adapter ('{name}') is not supported yet", ADAPTER_HINT)
        for place, name in adapters
        if not any(_exists(folder / name) for folder in origin.folders)
    ]
    if found:
        lines, hints = zip(*found, strict=True)
        raise RecipeError(joined(list(lines)), hint="; ".join(dict.fromkeys(hints)))


def _references(data: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    yield ("base_model",), data.get("base_model")
    models = data.get("models")
    for i, entry in enumerate(models if isinstance(models, list) else []):
        if isinstance(entry, dict):
            yield ("models", i, "model"), entry.get("model")
        else:
            yield ("models", i), entry


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    # A name that is too long to be one.
    except OSError:
        return False
