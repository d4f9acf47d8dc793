"""The pieces that write to the terminal, on a terminal that the test holds the other end of."""

from __future__ import annotations

import os
import pty
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lorahub.cli.output import escaped, human_size, one_line, progress


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """Standard error is a terminal; the function returns what appeared on it since it was last asked."""
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)

        def read() -> str:
            stream.flush()
            try:
                return os.read(ours, 65536).decode()
            except BlockingIOError:
                return ""

        yield read
    os.close(ours)


def wait_for(read: Callable[[], str], text: str) -> str:
    seen, deadline = "", time.monotonic() + 30
    while text not in seen:
        assert time.monotonic() < deadline, seen
        seen += read()
        time.sleep(0.01)
    return seen


def test_progress_counts_and_goes_on_through_silent_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.monotonic()
    with terminal(monkeypatch) as shown:
        with progress("combining") as advance:
            assert advance is not None
            wait_for(shown, "\rcombining: 1 s\x1b[K")
            assert time.monotonic() - start > 0.9
            advance(3, 12)
            wait_for(shown, "\rcombining: 3/12 layers ")
            advance(12, 12)  # saving follows, which counts nothing
            wait_for(shown, "\rcombining: 2 s\x1b[K")
        assert shown().endswith("\r\x1b[K")


def test_progress_of_a_quick_step_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with terminal(monkeypatch) as shown:
        with progress("combining") as advance:
            assert advance is not None
            advance(1, 2)
        assert shown() == ""


@pytest.mark.parametrize("stream", [None, "pipe"])
def test_no_progress_without_a_terminal(monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    if stream is None:
        monkeypatch.setattr(sys, "stderr", None)
    with progress("combining") as advance:
        assert advance is None


def test_escaping() -> None:
    assert escaped("Δ ☃ a\tb\n\x1b[2J\x9b\u202e\udcff\U000e0001") == (
        "Δ ☃ a\\tb\\n\\x1b[2J\\x9b\\u202e\\udcff\\U000e0001"
    )
    assert one_line(" two\n  lines\x1b ") == "two lines\\x1b"


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (39_512, "39.5 kB"), (1_720_000, "1.72 MB"), (7.5e9, "7.5 GB")]
)
def test_sizes(size: float, text: str) -> None:
    assert human_size(size) == text
