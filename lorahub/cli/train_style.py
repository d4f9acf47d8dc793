"""lorahub train-style"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorahub.cli import options, output
from lorahub.cli.distill import watching


@click.command(short_help="Train a style LoRA on pictures.")
@click.argument("config", metavar="CONFIG.toml", type=click.Path(path_type=Path))
@click.option("-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a setting; repeatable.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint; the result is the same to the bit.")
@options.json_option
def command(config: Path, overrides: tuple[str, ...], resume: bool, as_json: bool) -> None:
    """Fine-tune a LoRA on pictures with captions: an ordinary style vector, to be added to others.

    Saved with explicit alpha, loaded back by diffusers and compared before success is reported. Checkpoints are in
    OUTPUT-run beside the output. On several GPUs: accelerate launch --no_python lorahub train-style CONFIG.toml

    \b
    CONFIG.toml, with what is usually set:
      base = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # or a folder
      output = "papercut.safetensors"
      name = "papercut"               # registers it; trigger_words = ["papercut"]
      rank = 16                       # targets = "attention" or "all"
      steps = 1500                    # learning_rate = 1e-4, batch_size = 4
      precision = "fp16"              # gradient_checkpointing = true, min_snr = 5.0
      [data]
      folder = "pictures"             # or dataset, shards, prompts
      cache = "cache"                 # prompt = "papercut style", flip = true

    \b
    Examples:
      lorahub train-style papercut.toml
      lorahub train-style papercut.toml -s rank=32 -s data.folder=more-pictures
      lorahub train-style papercut.toml --resume
    """
    with watching("training") as advance:
        from lorahub.distill.running import run

        done = run(config, overrides, style=True, resume=resume, progress=advance)
    if done.path is not None:  # in the main process
        result = {
            "command": "train-style",
            "output": str(done.path),
            "registered": done.reference,
            "rank": done.settings.rank,
            "steps": done.settings.steps,
            "loss": done.loss,
            "layers": done.layers,
            "size": done.size,
        }
        output.emit(result, _as_lines, as_json)


def _as_lines(result: dict[str, Any]) -> list[str]:
    loss = "" if result["loss"] is None else f", loss {result['loss']:.4g}"
    lines = [
        f"{result['output']}: {result['layers']} layers, rank {result['rank']}, {output.human_size(result['size'])}",
        "  loaded back and compared: it answers as the trained network",
    ]
    if result["registered"] is not None:
        lines.append(f"  registered as {result['registered']}")
    return [*lines, f"  {result['steps']} steps{loss}"]
