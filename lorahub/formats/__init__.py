"""Spellings of adapters on disk.

Reading takes two steps: `layout.parse` (header only: keys.py names, kinds.py shapes, peft_config.py scales, cloneofsimo.py
numbers) and `decode.decode` (tensors to factors). Writing is encode.py.

The rule: alpha, prefixes and key dialects exist in files and here, and nowhere else. Reading a header needs the
standard library only, so this package imports nothing by itself.
"""
