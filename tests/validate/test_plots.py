"""Plots are well-formed, show what they are given, and let no text out of its place."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from lorahub.validate.plots import Line, Point, plot, surface, swatch

LINES = (
    Line("one", (Point(1, 10, 9, 11), Point(2, 20, 18, 23), Point(8, 40))),
    Line("two <b>", (Point(8, 5, label='"<script>"'), Point(1, 7))),
)


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(svg).iter("text")]


def heights(svg: str, colour: str) -> list[float]:
    marks = [
        each.attrib["d"] for each in ElementTree.fromstring(svg).iter("path") if each.get("class") == f"mark {colour}"
    ]
    return [float(way[1:].partition("m")[0].split()[1]) for way in marks]


def test_values_lie_in_proportion_between_round_ticks() -> None:
    svg = plot(LINES, x="steps", y="psnr", logarithmic=True)
    assert texts(svg) == ["40", "30", "20", "10", "0", "8", "2", "1", "steps", "psnr"]
    ten, twenty, forty = heights(svg, "c0")
    assert (ten - twenty) * 2 == pytest.approx(twenty - forty, abs=0.2)


def test_hostile_names_stay_text() -> None:
    svg = plot(LINES, x="<i>", y="</svg>")
    root = ElementTree.fromstring(svg)
    assert {each.tag for each in root.iter()} == {"svg", "path", "text", "title"}
    assert '"<script>"' in [each.text for each in root.iter("title")]
    assert root.attrib["aria-label"] == "</svg> over <i>: one; two <b>"


def test_what_is_not_finite_is_left_out_and_nothing_is_no_plot() -> None:
    points = (Point(1, 1), Point(2, math.nan), Point(3, 1, -math.inf, 2))
    assert len(heights(plot([Line("one", points)], x="", y=""), "c0")) == 1
    assert plot([Line("one", points[1:])], x="", y="") == ""


@pytest.mark.parametrize(("low", "high"), [(0.22, 0.22), (0, 0), (-3e-7, 4e-7), (1e6, 3e6), (-5, -4.99)])
def test_any_range_has_ticks_that_enclose_it(low: float, high: float) -> None:
    svg = plot([Line("one", (Point(1, low), Point(2, high)))], x="λ", y="y")
    assert all(12 <= height <= 190 for height in heights(svg, "c0"))
    assert 3 <= len(texts(svg)) - 4 <= 12


def test_labels_of_near_places_do_not_touch() -> None:
    crowded = [Point(1 + index / 100, index) for index in range(40)]
    shown = [text for text in texts(plot([Line("one", tuple(crowded))], x="λ", y="y")) if text.startswith("1")]
    assert "1.39" in shown
    assert len(shown) <= 11


def test_a_surface_rings_the_best() -> None:
    points = [Point(0.8, 3.0, label="a"), Point(1.0, 4.0, label="b"), Point(1.2, 3.5, label="c")]
    root = ElementTree.fromstring(surface(points, x="lcm", y="style", across=[1.0, 1.1, 1.2], best=1))
    rings = [each for each in root.iter("g") if each.get("class") == "best"]
    assert [title.text for ring in rings for title in ring.iter("title")] == ["b"]
    shades = [float(each.attrib["fill-opacity"]) for each in root.iter("circle")]
    assert shades == [0.15, 1.0, pytest.approx(0.57, abs=0.01)]


def test_every_line_has_its_own_marker_and_dashes() -> None:
    assert len({swatch(index).replace(f"c{index}", "") for index in range(6)}) == 6
