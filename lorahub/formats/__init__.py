"""Spellings of adapters on disk: keys.py reads names, layout.py headers, decode.py tensors, encode.py writes.

The rule: alpha, prefixes and key dialects exist in files and here, and nowhere else. Reading a header needs the
standard library only, so this package imports nothing by itself.
"""
