"""Headers and plans make millions of objects that stay, among which Python looks for garbage again and again."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Do without the search for garbage in cycles meanwhile; planning 100,000 tensors takes a third of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
