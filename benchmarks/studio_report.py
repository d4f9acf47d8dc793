"""The tables and the plot of `benchmarks.studio`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STEPS = (1, 2, 4, 8)


def write(result: dict[str, Any], output: Path) -> None:
    """`studio.json`, `studio.md` and `studio.png` of what is measured so far."""
    (output / "studio.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    (output / "studio.md").write_text("\n".join(_text(result)) + "\n", encoding="utf-8")
    _plot(result, output / "studio.png")


def _text(result: dict[str, Any]) -> Iterable[str]:
    yield f"{result['images']} images a cell.\n"
    yield from _matrix("base", result["base"])
    for style, found in result["styles"].items():
        yield from _matrix(style, found["rows"])
        yield from _gains(style, found["differences"])
    if "variant" in result:
        yield from _matrix("fine-tuned variant of the base", result["variant"])
    if "sweep" in result:
        yield from _sweep(result["sweep"])
    if "truncated" in result:
        yield from _truncated(result["truncated"])


def _matrix(title: str, rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    """A table for each reference, and one of the shares; a row for each adapter and sampler."""
    yield f"### {title}\n"
    measures = [name for name in rows[0] if name.startswith("distance")]
    for measure in measures:
        yield from _table(f"{title}: {measure}", rows, lambda row, measure=measure: _interval(row[measure]))  # type: ignore[misc]
    yield from _table(f"{title}: share right in all attributes, in the style", rows, _shares)
    for row in rows:
        if row["steps"] not in STEPS:
            distances = "; ".join(f"{name} {_interval(row[name])}" for name in measures)
            yield f"{row['row']}, {row['sampler']}: {_shares(row)}; {distances}\n"


def _table(title: str, rows: Sequence[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> Iterable[str]:
    yield f"| {title} | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |"
    yield "| --- |" + " --- |" * len(STEPS)
    lines: dict[str, dict[int, str]] = {}
    for row in rows:
        if row["steps"] in STEPS:
            lines.setdefault(f"{row['row']}, {_kind(row['sampler'])}", {})[row["steps"]] = cell(row)
    for label, cells in lines.items():
        yield f"| {label} | " + " | ".join(cells[steps] for steps in STEPS) + " |"
    yield ""


def _kind(sampler: str) -> str:
    """The sampler without its number of steps."""
    return " ".join(word for place, word in enumerate(sampler.split()) if place != 1)


def _shares(row: dict[str, Any]) -> str:
    return f"{_interval(row['all'])}, {row['style']['value']:.2f}"


def _cell(row: dict[str, Any]) -> str:
    return (
        f"{_interval(row['distance to 50 guided'])}, right {row['all']['value']:.2f}, style {row['style']['value']:.2f}"
    )


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _gains(style: str, rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    yield f"Distance of {style} under each sampler less that of {style} + LCM at as many steps (positive: LCM is nearer):\n"
    yield "| to, against | " + " | ".join(f"{steps} steps" for steps in STEPS) + " |"
    yield "| --- |" + " --- |" * len(STEPS)
    lines: dict[str, dict[int, str]] = {}
    for row in rows:
        lines.setdefault(f"{row['to']}, {_kind(row['against'])}", {})[row["steps"]] = _interval(row)
    for kind, cells in sorted(lines.items()):
        yield f"| {kind} | " + " | ".join(cells[steps] for steps in STEPS) + " |"
    yield ""


def _sweep(rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    for style in dict.fromkeys(row["of"] for row in rows):
        yield f"### λ sweep, {style}, LCM sampler, 2 steps: distance, share in the style\n"
        mine = [row for row in rows if row["of"] == style]
        seconds = sorted({row["lambda2"] for row in mine})
        yield "| λ1 \\ λ2 | " + " | ".join(f"{second:g}" for second in seconds) + " |"
        yield "| --- |" + " --- |" * len(seconds)
        for first in sorted({row["lambda1"] for row in mine}):
            cells = [row for row in mine if row["lambda1"] == first]
            found = [f"{cell['distance to 50 guided']['value']:.2f}, {cell['style']['value']:.2f}" for cell in cells]
            yield f"| {first:g} | " + " | ".join(found) + " |"
        yield ""


def _truncated(rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    yield "### rank reduction of style + LCM\n"
    yield "| style | rank | of the norm left out | 2 steps | 4 steps |"
    yield "| --- | --- | --- | --- | --- |"
    for two, four in zip(rows[::2], rows[1::2], strict=True):
        yield f"| {two['of']} | {two['rank']} | {two['left out']:.1%} | {_cell(two)} | {_cell(four)} |"


def _plot(result: dict[str, Any], path: Path) -> None:
    groups = {"base": result["base"]} | {style: found["rows"] for style, found in result["styles"].items()}
    figure, axes = plt.subplots(1, len(groups), figsize=(3.2 * len(groups), 3.2), squeeze=False)
    for axis, (title, rows) in zip(axes[0], groups.items(), strict=True):
        lines: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if row["steps"] in STEPS and not row["row"].startswith("0.8"):
                label = "+ LCM" if row["row"].endswith("+ LCM") else _kind(row["sampler"])
                lines.setdefault(label, []).append(row)
        for label, cells in lines.items():
            values = [cell["distance to 50 guided"]["value"] for cell in cells]
            look = "o-" if label == "+ LCM" else "o--" if "guidance" in label else "o:"
            axis.plot([cell["steps"] for cell in cells], values, look, lw=3 if look == "o-" else 1, ms=3, label=label)
        axis.set(title=title, xlabel="steps", xscale="log", yscale="log")
        axis.set_xticks(STEPS, [str(steps) for steps in STEPS])
        axis.minorticks_off()
    axes[0][0].set_ylabel("Fréchet distance to 50 guided steps")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
