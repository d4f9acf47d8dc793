"""Adapters on disk: load, save, convert. The one place where tensors meet files."""

from __future__ import annotations

from lorahub.files.loading import load_path
from lorahub.files.saving import FORMAT_NAMES, Saved, save

__all__ = ["FORMAT_NAMES", "Saved", "load_path", "save"]
