"""The demonstration through the command line: a fresh registry, a combination with its lineage, a picture and a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import lorahub as lh
from lorahub.cli import main

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["studio", *map(str, arguments)], prog_name="lorahub")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("show") / "stars"
    options = ("--style", "stripes", "--prompt", "red star on teal", "--pictures", "6")
    return folder, run("show", "-o", folder, *options, "--json")


def test_the_combination_is_in_the_registry(shown: tuple[Path, Result]) -> None:
    folder, result = shown
    assert result.exit_code == 0, result.output
    with lh.open(folder / "registry") as catalogue:
        record = catalogue.get("stripes-fast")
        family = catalogue.lineage("stripes-fast")
        kept = lh.load(catalogue.path(record))
        style, lcm = (lh.load(catalogue.path(catalogue.get(name))) for name in ("stripes", "lcm"))
        assert catalogue.get("lcm").kind == "acceleration"
    assert "0.8" in json.dumps(family, default=vars)
    whole = 0.8 * style + 1.0 * lcm
    best = lh.truncate(whole, lh.fixed(12))
    assert max(layer.rank for layer in kept.layers.values()) == 12
    assert lh.norm(kept - best) < 2e-3 * lh.norm(whole)


def test_the_result_in_json(shown: tuple[Path, Result]) -> None:
    found = json.loads(shown[1].stdout)
    assert found["command"] == "studio show"
    assert found["compatibility"]["can"] is True
    assert [(cell["row"], cell["steps"]) for cell in found["cells"]] == [
        (row, steps) for row in ("base", "stripes", "stripes + LCM") for steps in (1, 2, 4, 8, 50)
    ]
    assert all(cell["distance"] > 0 for cell in found["cells"])
    assert set(found["prompts"]) == {"red star on teal"}


def test_the_picture_and_the_page(shown: tuple[Path, Result]) -> None:
    folder, result = shown
    found = json.loads(result.stdout)
    assert (found["picture"], found["page"]) == (str(folder / "grid.png"), str(folder / "index.html"))
    with Image.open(folder / "grid.png") as picture:
        assert picture.width > 5 * 192 > picture.height > 3 * 128
    text = (folder / "index.html").read_text()
    assert "data:image/png;base64," in text
    assert not re.search(r'(src|href)="(?!data:)', text), "the page needs nothing else"
    assert "red star on teal" in text


def test_a_second_demonstration_needs_another_folder(shown: tuple[Path, Result]) -> None:
    result = run("show", "-o", shown[0])
    assert result.exit_code == 6
    assert "begin afresh with --force" in result.stderr


@pytest.mark.parametrize(
    ("code", "arguments", "message"),
    [
        (2, ("--prompt", "a castle"), "expected a prompt such as 'red star on teal'"),
        (4, ("--style", "cubist"), "there is no style 'cubist'"),
        (2, ("--pictures", "3"), "--pictures"),
    ],
)
def test_refusals_leave_nothing(tmp_path: Path, code: int, arguments: tuple[str, ...], message: str) -> None:
    result = run("show", "-o", tmp_path / "out", *arguments)
    assert result.exit_code == code
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_build_does_not_write_over_what_is_there(tmp_path: Path) -> None:
    result = run("build", "--output", tmp_path)
    assert result.exit_code == 6
    assert "--resume" in result.stderr
