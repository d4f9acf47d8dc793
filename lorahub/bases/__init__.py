"""Base models as data: the layers an adapter can touch, the names files give them, and which base a file is for.

`names`, `get` and `detect` read tables; only `python -m lorahub.bases.scan`, which writes them, needs torch.
"""

from lorahub.bases.detect import Detection, Seen, detect
from lorahub.bases.library import get, names, register
from lorahub.bases.model import Base, Component, Span, flatten

__all__ = ["Base", "Component", "Detection", "Seen", "Span", "detect", "flatten", "get", "names", "register"]
