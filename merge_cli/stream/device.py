"""Which device to compute on."""

from __future__ import annotations

import ctypes
from pathlib import Path

from merge_cli.errors import RecipeError


def choose_device(name: str) -> str:
    """Return the device to compute on, ``cpu`` or ``cuda[:N]``; ``auto`` takes a GPU where there is one.

    Raises:
        RecipeError: If there is no such device.
    """
    if name == "cpu" or (name == "auto" and not _has_driver()):
        return "cpu"
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"--device {name}: expected auto, cpu or cuda[:N]") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"--device {name}: expected auto, cpu or cuda[:N]")
    return str(device)


def _has_driver() -> bool:
    """Whether there is what torch cannot use a GPU without, NVIDIA's driver or AMD's: asked without importing torch."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True
