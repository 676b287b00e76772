"""Schedule for saving the sums of a measurement: at intervals, and when a signal ends the program."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# Saving takes at most a fiftieth of the time.
_SECONDS = 60.0
_LEAST_BETWEEN = 50


class Keeping:
    """Says after which batches the sums are to be saved.

    Args:
        every: After every so many; 0 for never, None for by the clock.
        clock: Gives seconds.
    """

    def __init__(self, every: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._cost = 0.0
        self._last = clock()

    def due(self, batches: int) -> bool:
        """Return whether to save when so many batches have been summed."""
        if self._every is not None:
            return self._every > 0 and batches % self._every == 0
        return self._clock() - self._last >= max(_SECONDS, _LEAST_BETWEEN * self._cost)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Take the time that saving takes."""
        begun = self._clock()
        yield
        self._last = self._clock()
        self._cost = self._last - begun


class Signals:
    """A signal that ends the program, kept until the sums are whole; a second one does not wait."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._come: int | None = None

    @property
    def come(self) -> bool:
        """Tell whether the program is to end."""
        return self._come is not None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Let signals wait; those that nobody handles in Python are left as they are."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._take)
        try:
            yield
        finally:
            self._restore()

    def deliver(self) -> None:
        """Hand the signal that has come to whoever handles it."""
        if self._come is not None:
            handler = self._handlers[self._come]
            self._restore()
            handler(self._come, None)

    def _take(self, number: int, frame: FrameType | None) -> None:
        again, self._come = self.come, number
        if again:
            self.deliver()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._take:
                signal.signal(number, handler)
