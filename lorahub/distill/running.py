"""A run from a TOML file: settings, base, data, distillation or training of a style, registry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorahub.distill.settings import Settings, table
from lorahub.errors import UsageError

if TYPE_CHECKING:
    from lorahub.distill.trainer import Distilled
    from lorahub.workspace.core import Workspace


@dataclass(frozen=True)
class Finished:
    """A run that ended well.

    path: the file of the vector (None in the mode guided, and in the processes of a launch that are not the main one).
    model: folder of the trained U-Net, where a whole one was trained. reference: its name in the registry, if it has one.
    loss: the mean over the last tenth of the steps; None when a resumed run had nothing left to do.
    """

    settings: Settings
    path: Path | None
    model: Path | None
    reference: str | None
    loss: float | None
    layers: int
    size: int


Progress = Callable[[int, int, str], None]
"""(how much is done, of how many, what: pictures, or steps with the loss and the time that is left)."""


def run(
    config: Path,
    overrides: Iterable[str] = (),
    *,
    style: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> Finished:
    """Distil, or train a style, as the file says, with `key=value` overrides.

    Raises what its parts raise; a line each, naming the key.
    """
    given = table(config, overrides)
    data = given.pop("data", None)
    kind, train, register = _task(style)
    settings = kind.of(given)
    if not settings.output:
        raise UsageError("output: name the file to write the vector to")
    if not isinstance(data, dict):
        raise UsageError("[data]: say what to train on, such as folder = 'pictures'")
    if settings.name:
        from lorahub.workspace.composing import check_name

        check_name(settings.name)
    from lorahub.distill.base import load_base
    from lorahub.distill.data import open_source
    from lorahub.distill.trainer import Report

    pipeline = load_base(settings.base, settings.precision)

    def training(report: Report) -> None:
        if progress is not None:
            progress(report.step, report.steps, f"steps, loss {report.loss:.4g}, {_time(report.remaining)} left")

    source = open_source(data, pipeline, batch_size=settings.batch_size, seed=settings.seed, progress=progress)
    made = train(pipeline, source, settings, progress=training, resume=resume)
    reference = None
    if settings.name and made.saved is not None:
        from lorahub.workspace.core import Workspace

        with Workspace.open() as workspace:
            reference = register(workspace, made, settings.name)
    tail = made.losses[-max(len(made.losses) // 10, 1) :]
    folder = settings.run_folder
    return Finished(
        settings,
        None if made.saved is None else made.saved.path,
        folder / "unet" if made.unet is not None and folder is not None else None,
        reference,
        sum(tail) / len(tail) if tail else None,
        0 if made.saved is None else made.saved.layers,
        0 if made.saved is None else made.saved.size,
    )


def _task(style: bool) -> tuple[type[Settings], Callable[..., Distilled], Callable[[Workspace, Distilled, str], str]]:
    """The settings of the task, what trains, and what registers the result."""
    if style:
        from lorahub.distill import style as styles

        return styles.StyleSettings, styles.train_style, styles.register
    from lorahub.distill.registering import register
    from lorahub.distill.trainer import distill

    return Settings, distill, register


def _time(seconds: float) -> str:
    """`4 s`, `3:05`, `2:10:00`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
