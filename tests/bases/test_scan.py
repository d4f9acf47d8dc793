"""The tables in the repository are those that scanning the installed libraries writes."""

from __future__ import annotations

import pytest

from lorahub.bases import get, scan
from lorahub.bases.configs import RECIPES, Recipe

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_scanning_again_changes_no_byte(recipe: Recipe) -> None:
    stored = (scan.DATA / f"{recipe.name}.json").read_text(encoding="utf-8")
    assert scan.written(scan.scan(recipe)) == stored


def test_the_index_lists_every_recipe() -> None:
    assert scan.written(scan.index()) == (scan.DATA / "index.json").read_text(encoding="utf-8")
    assert {path.stem for path in scan.DATA.iterdir()} == {"index", *(recipe.name for recipe in RECIPES)}


@pytest.mark.parametrize(("name", "parameters"), [("sd15", 859_520_964), ("sdxl", 2_567_463_684)])
def test_the_unet_has_its_published_size(name: str, parameters: int) -> None:
    (unet,) = (part for recipe in RECIPES if recipe.name == name for part in recipe.parts if part.name == "unet")
    assert sum(parameter.numel() for parameter in scan.build(unet).parameters()) == parameters


def test_layers_keep_the_order_of_the_model() -> None:
    """Files of the cloneofsimo trainer name layers by their position in this order."""
    (unet,) = (part for recipe in RECIPES if recipe.name == "sd15" for part in recipe.parts if part.name == "unet")
    assert list(get("sd15").components["unet"].layers) == list(scan.modules(unet)[0])


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SystemExit, match="unknown base 'sd16'"):
        scan.main(["sd16"])
