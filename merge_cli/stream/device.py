"""Which device to compute on."""

import torch

from merge_cli.errors import RecipeError


def choose_device(name: str) -> torch.device:
    """Return the device to compute on; ``auto`` takes a GPU where there is one.

    Raises:
        RecipeError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise RecipeError(f"--device {name}: expected auto, cpu or cuda[:N]") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise RecipeError(f"--device {name}: expected auto, cpu or cuda[:N]")
    return device
