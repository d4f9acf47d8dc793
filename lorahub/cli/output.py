"""What reaches the terminal: results on standard output, progress on standard error, strangers' text without its escapes."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import click

SCHEMA = 1
"""Version of the shape of every --json result; it rises when a field changes its meaning or goes away."""


def emit(result: dict[str, Any], lines: Callable[[dict[str, Any]], Iterable[str]], as_json: bool) -> None:
    """The result on standard output: JSON with real numbers, or the lines made from it.

    The JSON is plain ASCII, so every terminal and pipe takes it, and has null where a number is NaN or infinite.
    """
    if as_json:
        click.echo(json.dumps(_finite({"schema": SCHEMA, **result}), indent=2, allow_nan=False))
    else:
        click.echo("\n".join(escaped(line) for line in lines(result)))


def escaped(text: str) -> str:
    """The text with control characters, line breaks and undecodable bytes written out: it may come from strangers."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def one_line(text: str) -> str:
    """The text escaped, its lines joined."""
    return escaped(" ".join(text.split()))


def human_size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def progress(label: str) -> Iterator[Callable[..., None] | None]:
    """A line on standard error while the block runs, from the second second on, and only when that is a terminal.

    Yields the function that takes (layers done, layers in all, what they are instead of layers), or None when nobody is
    watching.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    line = _ProgressLine(label)
    try:
        yield line.advance
    finally:
        line.close()


class _ProgressLine:
    """Redrawn by a thread of its own, so that it also moves while one long step reports nothing."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._start = time.monotonic()
        self._counts = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw, daemon=True)
        self._thread.start()

    def advance(self, done: int, total: int, unit: str = "layers") -> None:
        self._counts = f" {done}/{total} {unit}" if done < total else ""

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _draw(self) -> None:
        if self._over.wait(1.0):
            return
        while True:
            elapsed = time.monotonic() - self._start
            click.echo(f"\r{self._label}:{self._counts} {elapsed:.0f} s\x1b[K", nl=False, err=True)
            if self._over.wait(0.25):
                click.echo("\r\x1b[K", nl=False, err=True)
                return
