"""All that stands beside the output's weights but its configuration: what is copied, written, and to be told of."""

from __future__ import annotations

from merge_cli.plan.companions import Companions
from merge_cli.plan.inputs import Inputs
from merge_cli.plan.modules import borrowed_modules, module_notes
from merge_cli.plan.output import side_file_donor, side_files
from merge_cli.plan.special_tokens import special_token_notes, special_token_warnings
from merge_cli.plan.templates import chat_templates


def files_beside(inputs: Inputs) -> Companions:
    """Return what comes along: the donor's files, and what the models have in common where the donor has none.

    Raises:
        CheckpointError: If a file is a link out of its checkpoint, or cannot be read or listed.
    """
    donor = side_file_donor(inputs)
    templates, modules = chat_templates(inputs.models, donor), borrowed_modules(inputs.models, donor)
    return Companions(
        files={**modules.files, **side_files(donor), **templates.files},
        texts=templates.texts,
        warnings=(*special_token_warnings(inputs.models, donor), *templates.warnings, *modules.warnings),
        notes=(
            *special_token_notes(inputs.models, donor),
            *module_notes(inputs.models, donor),
            *templates.notes,
            *modules.notes,
        ),
    )
