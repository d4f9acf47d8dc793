"""Grids of pictures with labels, and the page that shows them with their scores."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image as Images

_ZOOM, _GAP, _LEFT, _TOP, _TEXT = 2, 8, 150, 30, 14


def grid(cells: Sequence[Sequence[Tensor]], rows: Sequence[str], columns: Sequence[str], across: int) -> Images.Image:
    """A picture of cells, each a block of pictures (N x 3 x H x W in [-1, 1]) `across` wide, with labels around."""
    from PIL import Image, ImageDraw, ImageFont

    blocks = [[_block(cell, across) for cell in row] for row in cells]
    width, height = blocks[0][0].size
    whole = Image.new(
        "RGB", (_LEFT + len(columns) * (width + _GAP), _TOP + len(rows) * (height + _GAP)), (255, 255, 255)
    )
    draw = ImageDraw.Draw(whole)
    font = ImageFont.load_default(_TEXT)
    for column, label in enumerate(columns):
        draw.text((_LEFT + column * (width + _GAP), _GAP), label, (0, 0, 0), font)
    for row, label in enumerate(rows):
        top = _TOP + row * (height + _GAP)
        draw.text((_GAP, top), label, (0, 0, 0), font)
        for column, block in enumerate(blocks[row]):
            whole.paste(block, (_LEFT + column * (width + _GAP), top))
    return whole


def _block(pictures: Tensor, across: int) -> Images.Image:
    from PIL import Image

    levels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte()
    count, _, height, width = levels.shape
    down = -(-count // across)
    block = Image.new("RGB", (across * width, down * height))
    for index, picture in enumerate(levels):
        tile = Image.fromarray(picture.permute(1, 2, 0).numpy())
        block.paste(tile, (index % across * width, index // across * height))
    return block.resize((block.width * _ZOOM, block.height * _ZOOM), Image.Resampling.NEAREST)


def page(title: str, paragraphs: Sequence[str], picture: Images.Image, table: Sequence[Sequence[str]]) -> str:
    """A self-contained HTML page: text, the picture, and a table whose first row is its head."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    head, *body = table
    rows = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in body)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>{html.escape(title)}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; image-rendering: pixelated; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .2rem .8rem; text-align: right; border-bottom: 1px solid #ccc; }}
td:first-child, th:first-child {{ text-align: left; }}
</style>
<h1>{html.escape(title)}</h1>
{"".join(f"<p>{html.escape(text)}</p>" for text in paragraphs)}
<p><img src="data:image/png;base64,{data}" alt="{html.escape(title)}"></p>
<table>
<tr>{"".join(f"<th>{html.escape(cell)}</th>" for cell in head)}</tr>
{rows}</table>
</html>
"""
