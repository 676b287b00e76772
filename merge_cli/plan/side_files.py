"""Side files of the output: its configuration, and the files that are copied."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from merge_cli.checkpoint import SIDE_PATTERNS, Checkpoint, DType
from merge_cli.checkpoint.os_errors import read_errors
from merge_cli.checkpoint.resolve import check_link_stays_inside
from merge_cli.errors import CheckpointError
from merge_cli.plan.inputs import Inputs
from merge_cli.plan.matching import TensorMatch
from merge_cli.plan.modules import borrowed_modules, module_files, module_notes
from merge_cli.plan.side_file_set import SideFiles
from merge_cli.plan.special_tokens import special_token_notes, special_token_warnings
from merge_cli.plan.templates import chat_templates
from merge_cli.plan.tying import config_of_ties

# Written anew, or about training and not about the model.
_NOT_COPIED = (
    "config.json", "README.md", "*.index.json", "merge_manifest.json", "mergekit_config.yml", "adapter_config.json",
    "trainer_state.json", "all_results.json", "train_results.json", "eval_results.json", "training_args.*",
)  # fmt: skip
# About ten times the largest tokenizer file.
_MOST_SIDE_BYTES = 500_000_000
_MODEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def side_file_donor(inputs: Inputs) -> Checkpoint:
    """Return whose tokenizer and other files the output gets: the base's, else the first model's in the recipe."""
    return inputs.base or inputs.models[0]


def donor_files(donor: Checkpoint) -> dict[str, Path]:
    """Return name in the output -> each file that comes along, in order; a single weight file has none.

    Files in folders are those of modules, named in ``modules.json``.

    Raises:
        CheckpointError: If one of them is a link out of the checkpoint, or cannot be listed in the output's digests.
    """
    with read_errors(donor.root):
        if not donor.root.is_dir():
            return {}
        wanted = [path for path in sorted(donor.root.iterdir()) if _comes_along(path.name)]
        for path in wanted:
            check_link_stays_inside(path, donor.root)
        found = {path.name: path for path in wanted if path.is_file()} | module_files(donor.root)
        for path in found.values():
            if not path.name.isprintable():
                raise CheckpointError(f"{path} has a name that cannot be printed", hint="rename or remove it")
            size = path.stat().st_size
            if size > _MOST_SIDE_BYTES:
                raise CheckpointError(f"{path} has {size} bytes, too many to come along", hint="remove it")
        return found


def _comes_along(name: str) -> bool:
    def matches(patterns: Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    # Hidden files are those of editors, systems, and this program's own work.
    return not name.startswith(".") and matches(SIDE_PATTERNS) and not matches(_NOT_COPIED)


def config_donor(inputs: Inputs, names: TensorMatch) -> Checkpoint:
    """Return whose configuration the output gets.

    Where excluded tensors come from one model, its configuration describes the output's architecture and labels.
    """
    return names.head_source or side_file_donor(inputs)


def output_config(inputs: Inputs, names: TensorMatch, dtype: DType | None) -> Mapping[str, Any]:
    """Return the output's configuration: the donor's, with the dtype that the weights have."""
    donor = config_donor(inputs, names)
    config = {key: value for key, value in donor.config.items() if not _tells_where(key, value)}
    if not config:
        return {}
    if dtype is not None:
        config = _with_dtype(config, dtype.torch_name)
        if not {"dtype", "torch_dtype"} & config.keys():
            config["torch_dtype"] = dtype.torch_name
    return config_of_ties(config, donor, inputs.reference, names.order)


def _tells_where(key: str, value: Any) -> bool:
    """Tell whether it is the path on its author's machine from which transformers loaded a model."""
    return key == "_name_or_path" and not (isinstance(value, str) and _MODEL_NAME.fullmatch(value))


def _with_dtype(config: dict[str, Any], name: str) -> dict[str, Any]:
    """Replace the dtype wherever a configuration, or the configuration of a part of the model, gives one."""
    return {
        key: name
        if key in ("dtype", "torch_dtype")
        else _with_dtype(value, name)
        if isinstance(value, dict) and key.endswith("_config")
        else value
        for key, value in config.items()
    }


def collect_side_files(inputs: Inputs) -> SideFiles:
    """Return what comes along: the donor's files, and what the models have in common where the donor has none.

    Raises:
        CheckpointError: If a file is a link out of its checkpoint, or cannot be read or listed.
    """
    donor = side_file_donor(inputs)
    templates, modules = chat_templates(inputs.models, donor), borrowed_modules(inputs.models, donor)
    return SideFiles(
        files={**modules.files, **donor_files(donor), **templates.files},
        texts=templates.texts,
        warnings=(*special_token_warnings(inputs.models, donor), *templates.warnings, *modules.warnings),
        notes=(
            *special_token_notes(inputs.models, donor),
            *module_notes(inputs.models, donor),
            *templates.notes,
            *modules.notes,
        ),
    )
