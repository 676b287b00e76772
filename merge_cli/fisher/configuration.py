"""A model's configuration as transformers reads it, without what would fetch or run code."""

from __future__ import annotations

from typing import Any

from merge_cli.checkpoint import Checkpoint
from merge_cli.errors import CheckpointError
from merge_cli.optional import import_optional

# Ways to compute attention that torch has; transformers takes the others from the hub, as code.
_OWN_ATTENTION = {None, "eager", "sdpa"}


def read_configuration(checkpoint: Checkpoint, *, trusted: bool) -> Any:
    """Read ``config.json`` with transformers.

    Args:
        checkpoint: Of the model.
        trusted: Whether code beside the model may run, and kernels that its configuration names may be fetched.

    Raises:
        CheckpointError: If an adapter beside the weights would be applied to them.
        ValueError: What transformers raises for a configuration that it does not know.
        OSError: Likewise, where there is none.
    """
    if (checkpoint.root / "adapter_config.json").is_file():
        raise CheckpointError(
            f"{checkpoint.label} has adapter_config.json beside its weights: transformers would apply the adapter to "
            "them where peft is installed, and would not where it is not",
            hint="move the adapter's files out of the folder, or merge it into the weights: merge_and_unload of peft",
        )
    config = import_optional("transformers", "running a model").AutoConfig.from_pretrained(
        str(checkpoint.root), trust_remote_code=trusted
    )
    for each in _with_parts(config):
        if not trusted and getattr(each, "_attn_implementation", None) not in _OWN_ATTENTION:
            each._attn_implementation = None
        # The headers showed that the weights are plain.
        if hasattr(each, "quantization_config"):
            del each.quantization_config
    return config


def _with_parts(config: Any) -> list[Any]:
    """Return a configuration and those of its parts, such as the decoder of a model that sees."""
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    # The outer one hands what it is set to on to its parts, so these come last.
    return [config, *(inner for part in parts if part is not None for inner in _with_parts(part))]


def cannot_load(checkpoint: Checkpoint, error: BaseException, what: str) -> CheckpointError:
    """Say in one line why transformers cannot load something, with the option where it is for lack of trust."""
    if "trust_remote_code" in str(error):
        return CheckpointError(
            f"{checkpoint.label} needs Python code of its own, which auto_map in its configuration names",
            hint="read that code, then let it run with --trust-remote-code",
        )
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckpointError(f"{checkpoint.label}: transformers cannot load {what}: {first_line[:200]}")
