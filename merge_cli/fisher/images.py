"""Pixels of images, as a model takes them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from merge_cli.errors import CheckpointError
from merge_cli.fisher.batching import Unusable
from merge_cli.optional import import_optional


def pixels_of(processor: Any, image: Any) -> Tensor:
    """Return what the model's processor makes of an image; numbers are taken as they are."""
    if image is None:
        raise Unusable("without an image")
    if isinstance(image, list):
        return torch.tensor(image, dtype=torch.float32)
    if processor is None:
        raise CheckpointError(
            "the model has no image processor, so its size and scale of images are not known",
            hint="copy preprocessor_config.json of its base beside it",
        )
    made: Tensor = processor(images=_opened(image), return_tensors="pt")["pixel_values"][0]
    return made


def _opened(image: Any) -> Any:
    """Decode an image as the data holds it, a path or bytes."""
    library = import_optional("PIL.Image", "reading images")
    try:
        if isinstance(image, Mapping):
            content = image.get("bytes")
            image = library.open(io.BytesIO(content) if content is not None else image["path"])
        return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise Unusable("with an image that cannot be read") from error
