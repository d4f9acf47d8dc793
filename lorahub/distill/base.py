"""Load the base pipeline that a run starts from, onto the device that it trains on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorahub.errors import FileFormatError, NotFoundError, UsageError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_base(base: str, precision: str = "no") -> DiffusionPipeline:
    """The pipeline in a folder or Hub repository, its weights in the dtype of the mixed precision, on this process's device.

    precision: no (float32), fp16 or bf16. Raises UsageError when `base` is empty or has no U-Net, NotFoundError when there
    is nothing, FileFormatError for a folder that is no pipeline, NetworkError or AuthError from the Hub.
    """
    import torch
    from accelerate import PartialState
    from diffusers import DiffusionPipeline

    from lorahub.hub.errors import translated
    from lorahub.quiet import quiet

    if not base:
        raise UsageError("base: name the folder or the Hub repository of the base pipeline")
    dtype = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    options: dict[str, Any] = {"dtype": dtype}
    if Path(base).exists() or base.startswith((".", "/", "~")):
        folder = Path(base).expanduser()
        if not (folder / "model_index.json").is_file():
            kind = FileFormatError if folder.exists() else NotFoundError
            raise kind(f"base: {base} is no folder of a diffusers pipeline: it has no model_index.json")
        try:
            with quiet():
                pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **options)
        except (OSError, ValueError, KeyError) as error:
            raise FileFormatError(f"base: {base} cannot be loaded: {str(error).splitlines()[0]}") from error
    else:
        with translated(f"base: {base}"):
            pipeline = DiffusionPipeline.from_pretrained(base, **options)
    if getattr(pipeline, "unet", None) is None:
        raise UsageError(
            f"base: {type(pipeline).__name__} has no U-Net; SD 1.x, SD 2.x, SDXL and their like can be trained"
        )
    return pipeline.to(PartialState().device)
