"""When sums are saved, and what becomes of signals meanwhile."""

import os
import signal
from collections.abc import Iterator

import pytest

from merge_cli.fisher.keeping import Keeping, Signals


def times(*seconds: float) -> Iterator[float]:
    return iter(seconds)


def test_by_the_clock_sums_are_saved_every_minute() -> None:
    clock = times(0, 59, 60, 61, 62, 120, 122).__next__
    keeping = Keeping(None, clock)
    assert [keeping.due(1), keeping.due(2)] == [False, True]
    with keeping.saving():  # from 61 to 62
        pass
    assert [keeping.due(3), keeping.due(4)] == [False, True]


def test_saving_takes_a_fiftieth_of_the_time_at_most() -> None:
    clock = times(0, 100, 110, 609, 610).__next__
    keeping = Keeping(None, clock)
    with keeping.saving():  # ten seconds
        pass
    assert [keeping.due(1), keeping.due(2)] == [False, True]


def test_sums_are_saved_after_so_many_batches_or_never() -> None:
    assert [Keeping(3).due(batches) for batches in range(1, 7)] == [False, False, True, False, False, True]
    assert not any(Keeping(0, times(0, 1e9).__next__).due(batches) for batches in range(1, 7))


def test_a_signal_waits_until_it_is_asked_for_and_a_second_one_does_not() -> None:
    signals = Signals()
    before = signal.getsignal(signal.SIGINT)
    with signals.waiting():
        signals.deliver()
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.come
        with pytest.raises(KeyboardInterrupt):
            signals.deliver()
    assert signal.getsignal(signal.SIGINT) is before
    again = Signals()
    with again.waiting():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        signals = Signals()
        with signals.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            assert not signals.come
    finally:
        signal.signal(signal.SIGTERM, before)
