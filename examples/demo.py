"""`make demo`: the main jobs on two small adapters with known answers, checked by hand, then the paper's effect in pictures."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import make_adapters

OUTPUT = Path("demo-output")
LORAHUB = Path(sys.executable).with_name("lorahub")


def run(*arguments: str) -> str:
    """Print the command and what it says; any failure ends the demo."""
    print("\n$ lorahub", " ".join(f'"{a}"' if " " in a else a for a in arguments), flush=True)
    done = subprocess.run([LORAHUB, *arguments], cwd=OUTPUT, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, end="", flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def compared(first: str, second: str) -> dict[str, Any]:
    """What `lorahub compare --json` says."""
    command = [LORAHUB, "compare", first, second, "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, cwd=OUTPUT, capture_output=True, check=True).stdout)
    return found


def check(what: str, found: float, expected: float, tolerance: float) -> None:
    right = abs(found - expected) <= tolerance * abs(expected)
    print(f"  {what}: {found:.6f}, by hand {expected:.6f}  {'ok' if right else 'WRONG'}", flush=True)
    if not right:
        sys.exit(1)


def squares(start: int, stop: int) -> float:
    """Σ 1/j² for j from start to stop: the squared norm of those singular values in one layer."""
    return sum(1 / j**2 for j in range(start, stop + 1))


def main() -> None:
    make_adapters.main(OUTPUT)
    layers = len(make_adapters.layers())
    print(f"Two SDXL adapters with {layers} layers, in different formats, are in {OUTPUT}/.")
    run("inspect", "papercut.safetensors")
    run("inspect", "lcm-lora.safetensors")
    run("combine", "0.8*./papercut.safetensors + 1.0*./lcm-lora.safetensors", "-o", "fast.safetensors", "--force")
    run("resize", "fast.safetensors", "-o", "fast-12.safetensors", "--rank", "12", "--force")
    run("convert", "fast-12.safetensors", "-o", "fast-12-peft", "--to", "peft", "--force")
    run("compare", "papercut.safetensors", "lcm-lora.safetensors")
    run("compare", "fast-12.safetensors", "fast-12-peft")

    print(
        "\nThe answers, by hand: the style's singular values are 0.4/j (0.8 times alpha/rank), the accelerator's 1/j."
    )
    style, lcm = 0.4**2 * squares(1, 8), squares(1, 16)
    facts = compared("papercut.safetensors", "fast.safetensors")
    check("norm of the combination", facts["norms"][1], math.sqrt(layers * (style + lcm)), 1e-3)
    cosine = 0.8 * 0.5**2 * squares(1, 8) / (math.sqrt(0.25 * squares(1, 8)) * math.sqrt(style + lcm))
    check("its cosine with the style", facts["cosine"], cosine, 1e-3)
    smaller = compared("fast.safetensors", "fast-12.safetensors")
    spectrum = sorted([0.4 / j for j in range(1, 9)] + [1 / j for j in range(1, 17)], reverse=True)
    left_out = math.sqrt(layers * sum(sigma**2 for sigma in spectrum[12:]))
    check("what rank 12 leaves out", smaller["distance"], left_out, 1e-3)
    print("\nAll answers are right. Next, a style and an acceleration vector on a tiny Stable Diffusion (two minutes).")
    run("studio", "show", "-o", "studio", "--force")
    print(f"\nThe last two files are in {OUTPUT.resolve()}.")


if __name__ == "__main__":
    main()
