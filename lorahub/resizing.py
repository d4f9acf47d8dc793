"""Reduce the ranks of every adapter in a folder, one after the other, into another folder of the same structure.

The rule: whatever looks like an adapter is made or listed with the reason why not, and what does not is listed too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lorahub.errors import ConflictError, LorahubError, NotFoundError
from lorahub.files.loading import load_path
from lorahub.files.paths import PEFT_WEIGHTS, PICKLE_SUFFIXES, find_weights, is_one_adapter
from lorahub.making import Made, Wish, make

Progress = Callable[[int, int, str], None]
"""Called with (adapters done, adapters in all, "adapters")."""


@dataclass(frozen=True)
class Resized:
    """One adapter that was made: `source` and `output` are relative to the two folders, sizes are in bytes."""

    source: str
    output: str
    size_before: int
    made: Made


@dataclass(frozen=True)
class Batch:
    """What became of a folder: adapters made, (path, reason) of those that could not be, files that are no adapters."""

    resized: tuple[Resized, ...]
    failed: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...]


def resize_folder(
    folder: Path,
    output: Path,
    wish: Wish,
    *,
    base: str | None = None,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> Batch:
    """Write every adapter under `folder` to the same place under `output`, as wished; each is whole or absent there.

    Files keep their names and PEFT folders stay PEFT folders, unless the wish has a format. What fails is in the result.
    Raises NotFoundError when there is no adapter, or no folder to make `output` in; ConflictError when all outputs exist.
    """
    if not output.absolute().parent.is_dir():
        raise NotFoundError(f"no such folder: {output.parent}")
    if output.exists() and not output.is_dir():
        raise ConflictError(f"{output} is a file: adapters of a folder go into a folder")
    found = _Found(folder, output)
    if not found.adapters and not found.failed:
        raise NotFoundError(f"{folder} holds no adapter: expected .safetensors files or PEFT folders")
    resized: list[Resized] = []
    failed, taken, conflicts = list(found.failed), dict[Path, str](), 0
    for done, source in enumerate(found.adapters):
        if progress is not None:
            progress(done, len(found.adapters), "adapters")
        name = str(source.relative_to(folder))
        target, wanted = _target(output, source.relative_to(folder), source.is_dir(), wish)
        try:
            if target in taken:
                raise ConflictError(f"its output {target} is that of {taken[target]} too")
            taken[target] = name
            if os.path.lexists(target) and not wish.force:
                conflicts += 1
                raise ConflictError(f"{target} exists already: overwrite it with --force")
            size = sum(path.stat().st_size for path in find_weights(source))
            made = _resize(source, target, wanted, output, base, allow_pickle)
            resized.append(Resized(name, str(target.relative_to(output)), size, made))
        except (LorahubError, OSError) as error:
            failed.append((name, str(error)))
    if conflicts and conflicts == len(failed) and not resized:
        raise ConflictError(f"all {conflicts} outputs in {output} exist already: overwrite them with --force")
    return Batch(tuple(resized), tuple(failed), tuple(found.ignored))


def _resize(source: Path, target: Path, wish: Wish, root: Path, base: str | None, allow_pickle: bool) -> Made:
    adapter = load_path(source, base=base, allow_pickle=allow_pickle)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        return make(adapter, target, wish)
    finally:
        with suppress(OSError):  # not empty: as it should be
            for folder in target.parents[: len(target.relative_to(root).parts)]:
                folder.rmdir()


def _target(root: Path, relative: Path, is_folder: bool, wish: Wish) -> tuple[Path, Wish]:
    """Where an adapter goes, and the wish with the format that this place needs."""
    stem = relative.name if is_folder else relative.stem
    if wish.format == "peft" or (wish.format is None and is_folder):
        return root / relative.parent / stem, replace(wish, format="peft")
    return root / relative.parent / f"{stem}.safetensors", wish


@dataclass
class _Found:
    """What lies under `folder`, in the order of the names, `without` the folder that the results go into."""

    folder: Path
    without: Path
    adapters: list[Path] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._enter(self.folder)

    def _enter(self, folder: Path) -> None:
        try:
            entries = sorted(folder.iterdir())
        except OSError as error:
            self._fail(folder, f"cannot be read ({error.strerror})")
            return
        whole = folder != self.folder and is_one_adapter(folder)
        if whole:
            self.adapters.append(folder)
        for entry in entries:
            if entry.is_dir():
                if (whole and (entry / PEFT_WEIGHTS).is_file()) or entry.resolve() == self.without.resolve():
                    continue
                if entry.is_symlink():
                    self._fail(entry, "a link to a folder, which is not followed")
                else:
                    self._enter(entry)
            elif not (whole and entry.name in (PEFT_WEIGHTS, "adapter_config.json")):
                self._look(entry)

    def _look(self, path: Path) -> None:
        if path.suffix.lower() not in (".safetensors", *PICKLE_SUFFIXES):
            self.ignored.append(str(path.relative_to(self.folder)))
        elif path.is_file():
            self.adapters.append(path)
        else:
            self._fail(path, "a link to nothing" if path.is_symlink() else "no regular file")

    def _fail(self, path: Path, reason: str) -> None:
        self.failed.append((str(path.relative_to(self.folder)), reason))
