"""Prove that an adapter is what it claims: in its file, in numbers, in pictures."""
