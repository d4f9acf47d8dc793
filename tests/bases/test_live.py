"""Bases described from modules in memory, and registered ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lorahub import bases
from lorahub.bases import library
from lorahub.bases.live import describe
from lorahub.bases.scan import build
from lorahub.errors import BaseMismatchError, ConflictError, NotFoundError

torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def forget_registered() -> Iterator[None]:
    before = dict(library._registered)
    yield
    library._registered.clear()
    library._registered.update(before)


def net(width: int = 8) -> torch.nn.Module:
    block = torch.nn.ModuleDict(
        {"resnets": torch.nn.ModuleList([torch.nn.ModuleDict({"conv1": torch.nn.Conv2d(4, 6, 3)})])}
    )
    parts = {"conv_in": torch.nn.Conv2d(4, width, 3), "norm": torch.nn.LayerNorm(width)}
    return torch.nn.ModuleDict({**parts, "down_blocks": torch.nn.ModuleList([block])})


def test_layers_come_from_the_modules_and_names_from_the_family() -> None:
    base = describe("mine", {"unet": net()}, like="sdxl")
    unet = base.components["unet"]
    assert unet.layers == {"conv_in": (8, 4, 3, 3), "down_blocks.0.resnets.0.conv1": (6, 4, 3, 3)}
    assert unet.norms == {"norm": 8}
    for prefix, module in (
        ("unet", "down_blocks.0.resnets.0.conv1"),
        ("lora_unet", "input_blocks_1_0_in_layers_2"),
        ("lora_unet", "down_blocks_0_resnets_0_conv1"),
    ):
        spans = base.find(prefix, module)
        assert spans is not None
        assert [span.layer for span in spans] == ["unet.down_blocks.0.resnets.0.conv1"]


@pytest.mark.parametrize("name", ["sd15", "flux1"])
def test_a_listed_model_described_is_the_listed_base(name: str) -> None:
    from lorahub.bases.configs import RECIPES

    (recipe,) = (recipe for recipe in RECIPES if recipe.name == name)
    described = describe("mine", {part.name: build(part) for part in recipe.parts}, like=name)
    assert described.components == bases.get(name).components


def test_a_component_that_the_family_lacks_is_refused() -> None:
    with pytest.raises(BaseMismatchError, match="sd15 has no transformer: it has unet, text_encoder"):
        describe("mine", {"transformer": net()}, like="sd15")


def test_a_registered_base_is_found_by_its_name_and_never_detected() -> None:
    base = describe("mine", {"unet": net()}, like="sd15")
    with pytest.raises(NotFoundError, match="no base model is called 'mine'"):
        bases.get("mine")
    bases.register(base)
    bases.register(base)  # once more is no conflict
    assert bases.get("mine") is base
    assert "mine" not in bases.names()


def test_a_name_that_means_something_already_is_refused() -> None:
    bases.register(describe("mine", {"unet": net()}, like="sd15"))
    for name in ("sdxl", "SD 1.5", "mine"):
        with pytest.raises(ConflictError, match="is known already: choose another name"):
            bases.register(describe(name, {"unet": net(width=16)}, like="sd15"))
