"""Choice of the device to compute on."""

from __future__ import annotations

import ctypes
from pathlib import Path

from merge_cli.errors import RecipeError
from merge_cli.optional import import_optional, is_installed


def choose_device(name: str) -> str:
    """Return the device to compute on, ``cpu`` or ``cuda[:N]``; ``auto`` takes a GPU where there is one.

    Raises:
        RecipeError: If there is no such device, or no torch to use it.
    """
    if name == "cpu" or (name == "auto" and not _has_driver()):
        return "cpu"
    if name == "auto":
        return "cuda" if is_installed("torch") and _has_gpu() else "cpu"
    kind, _, index = name.partition(":")
    if kind != "cuda" or (":" in name and not index.isdecimal()):
        raise RecipeError(f"--device {name}: expected auto, cpu or cuda[:N]")
    count = import_optional("torch", f"--device {name}").cuda.device_count()
    if int(index or 0) >= count:
        raise RecipeError(f"--device {name}: this machine has {count} CUDA devices")
    return name


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_driver() -> bool:
    """Tell whether there is a GPU driver, NVIDIA's or AMD's, without importing torch."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True
