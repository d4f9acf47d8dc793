"""Adapters added into a base model for good: streamed, every other byte kept, DoRA included.

The rule: a checkpoint is reported as baked when its files were read again and found to hold what was asked for.
"""

from lorahub.baking.making import Baked, bake

__all__ = ["Baked", "bake"]
