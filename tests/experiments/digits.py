"""Digits drawn from a font of five by seven points, in four looks."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

_FONT = (
    ".###. #...# #..## #.#.# ##..# #...# .###.",
    "..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.",
    ".###. #...# ....# ...#. ..#.. .#... #####",
    ".###. #...# ....# ..##. ....# #...# .###.",
    "...#. ..##. .#.#. #..#. ##### ...#. ...#.",
    "##### #.... ####. ....# ....# #...# .###.",
    "..##. .#... #.... ####. #...# #...# .###.",
    "##### ....# ...#. ..#.. .#... .#... .#...",
    ".###. #...# #...# .###. #...# #...# .###.",
    ".###. #...# #...# .#### ....# ...#. .##..",
)
SIZE = 12
_NOISE = 0.2

# The base's own look comes first.
SHIFTS = ("plain", "bold", "rotated", "striped")


def draw(shift: str, count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw digits at random places, sizes and slants with noise.

    Returns:
        Images, shape ``(count, 1, 12, 12)``, and labels, shape ``(count,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    images = _place(_glyphs()[labels], generator)
    if shift == "bold":
        images = functional.max_pool2d(images, 3, stride=1, padding=1)
    elif shift == "rotated":
        images = images.rot90(1, (2, 3))
    elif shift == "striped":
        phase = torch.randint(3, (count, 1, 1, 1), generator=generator)
        stripes = ((torch.arange(SIZE).view(1, 1, 1, SIZE) + phase) % 3 == 0).float()
        images = (images - 0.7 * stripes).abs()
    noise = torch.randn(images.shape, generator=generator)
    return (images + _NOISE * noise - 0.3) / 0.5, labels


def _glyphs() -> Tensor:
    """The font, shape ``(10, 1, 7, 5)``."""
    rows = [[[float(point == "#") for point in row] for row in glyph.split()] for glyph in _FONT]
    return torch.tensor(rows)[:, None]


def _place(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Slant, stretch and move each glyph on its canvas."""
    count = len(glyphs)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    wide, high, slant = uniform(0.75, 1.15), uniform(0.75, 1.1), uniform(-0.25, 0.25)
    right, down = uniform(-0.25, 0.25), uniform(-0.2, 0.2)
    # From places on the canvas to places in the glyph, both from -1 to 1.
    across = torch.stack([SIZE / 6.5 * wide, slant, right], dim=1)
    along = torch.stack([torch.zeros(count), SIZE / 7.7 * high, down], dim=1)
    grid = functional.affine_grid(torch.stack([across, along], dim=1), [count, 1, SIZE, SIZE], align_corners=False)
    return functional.grid_sample(glyphs, grid, align_corners=False)
