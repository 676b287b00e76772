"""Keeping the libraries that run models from talking."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

_ALONE = threading.RLock()


@contextlib.contextmanager
def libraries_silenced() -> Iterator[None]:
    """Silence the bars and warnings of transformers and datasets; what matters of them is told in other words.

    One thread at a time: transformers replaces functions of its own while it loads a model, and two threads that load
    at once may leave them replaced, after which no model's tensors are tied any more.
    """
    with _ALONE, contextlib.ExitStack() as stack:
        for library in ("transformers", "datasets"):
            # One that is missing is complained of where it is used.
            with contextlib.suppress(ImportError):
                stack.enter_context(_hushed(importlib.import_module(f"{library}.utils.logging")))
        yield


@contextlib.contextmanager
def _hushed(logging: Any) -> Iterator[None]:
    # One library keeps its bars among its logging, the other beside it.
    bars = logging if hasattr(logging, "disable_progress_bar") else importlib.import_module("datasets")
    level, shown = logging.get_verbosity(), bars.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    bars.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            bars.enable_progress_bar()
