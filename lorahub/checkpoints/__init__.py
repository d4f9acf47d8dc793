"""Base models on disk, read tensor by tensor: which file, key and rows hold the weight of each layer an adapter names.

The rule: a checkpoint is never loaded whole. Opening reads headers only; `read` reads the bytes of one tensor.
"""

from lorahub.checkpoints.checkpoint import Checkpoint, Rows, Stored
from lorahub.checkpoints.opening import open_checkpoint

__all__ = ["Checkpoint", "Rows", "Stored", "open_checkpoint"]
