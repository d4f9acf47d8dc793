"""The client's progress bars: bytes and time left, on a terminal and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars


@contextmanager
def bars() -> Iterator[None]:
    """The client's calls inside show their progress only on a terminal; HF_HUB_DISABLE_PROGRESS_BARS decides first."""
    watched = sys.stderr is not None and sys.stderr.isatty()
    if watched or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None:
        yield
        return
    with disable_progress_bars():
        yield
