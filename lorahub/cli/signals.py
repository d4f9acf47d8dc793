"""Leaving early: a signal becomes an exception, so that every `finally` runs and nothing half written stays behind."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
TERMINATED = 143

received: list[int] = []
"""The signals that came since `handled` was entered: native code may turn their exception into one of its own."""


@contextmanager
def handled() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt in the block and SIGTERM SystemExit; elsewhere they mean what they meant before."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread handle signals
        yield
        return
    received.clear()
    before = {number: signal.signal(number, _leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    """Raise, but not inside an import: libraries catch exceptions there, and the signal would be lost."""
    received.append(number)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            again = threading.Timer(0.1, signal.raise_signal, [number])
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(TERMINATED)
