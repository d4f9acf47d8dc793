"""One of several processes that distil together; each writes the factors that it ends with."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from lorahub.distill import distill
from tests.distill.killed_worker import settings
from tests.distill.tiny import Batches, sd


def main(folder: Path) -> None:
    rank = os.environ["RANK"]
    pipeline = sd()
    output = settings(folder / "lcm.safetensors", steps=3, loss="l2")
    made = distill(pipeline, Batches(pipeline), output)
    assert made.adapter is not None
    factors = {name: layer.dense() for name, layer in made.adapter.layers.items()}
    torch.save(
        {"factors": factors, "losses": list(made.losses), "saved": made.saved is not None}, folder / f"{rank}.pt"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
