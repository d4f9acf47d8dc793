"""Adapters on disk: load, save, inspect. The one place where tensors meet files.

Nothing is imported here, so that reading headers (`inspecting.py`) does not import torch.
"""
