"""Networks that score, tiny ones on the disk: CLIP, LPIPS and a feature model, each against its own arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorahub.errors import FileFormatError, LorahubError, NotFoundError
from lorahub.validate import perceptual
from lorahub.validate.cells import Acceleration, Plan
from lorahub.validate.generating import generate
from lorahub.validate.judges import find_judges
from tests.validate import pipes
from tests.validate.test_generating import terms

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]
PROMPTS = ["a cat", "dog", "a prompt that is longer than what the model takes"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of random weights as transformers saves it: pictures of 32 pixels, prompts of 8 tokens."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    folder = tmp_path_factory.mktemp("clip")
    sides = {"image_size": 32, "patch_size": 8, "projection_dim": 16}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(11)
    config = CLIPConfig(text_config=pipes.clip().config.to_dict(), vision_config=small | sides, projection_dim=16)
    CLIPModel(config).eval().save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    CLIPProcessor(image_processor=pictures, tokenizer=pipes.tokenizer()).save_pretrained(folder)
    return folder


def alexnet(seed: int = 5) -> dict[str, Tensor]:
    """AlexNet's features as torchvision writes them, random, with what else its file holds."""
    random = torch.Generator().manual_seed(seed)
    found = {"classifier.6.bias": torch.zeros(1000)}
    for place, (inner, outer, side, _, _) in perceptual._CONVOLUTIONS.items():
        size = (inner * side * side) ** -0.5
        found[f"features.{place}.weight"] = torch.randn(outer, inner, side, side, generator=random) * size
        found[f"features.{place}.bias"] = torch.randn(outer, generator=random) * 0.1
    return found


def pictures(seed: int, count: int = 3, side: int = 40) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_the_clip_score_is_the_cosine_of_picture_and_prompt(clip: Path) -> None:
    judges = find_judges(clip=clip)
    assert judges.clip is not None
    found = judges.clip_scores(pictures(1), PROMPTS)
    model, processor = judges.clip
    model.requires_grad_(False)
    wanted = []
    for picture, prompt in zip(pictures(1), PROMPTS, strict=True):
        pixels = processor.image_processor((picture * 255).round().byte(), return_tensors="pt")["pixel_values"]
        words = processor.tokenizer(prompt, truncation=True, max_length=8, return_tensors="pt")["input_ids"]
        seen = model.visual_projection(model.vision_model(pixels).pooler_output)[0].double()
        read = model.text_projection(model.text_model(words).pooler_output)[0].double()
        wanted.append(max(0.0, 100 * float(seen @ read / (seen.norm() * read.norm()))))
    assert found == pytest.approx(wanted, abs=1e-3)
    assert len({round(value, 3) for value in wanted}) > 1


def test_lpips_is_that_of_torchmetrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchmetrics takes AlexNet's layers from torchvision; here it is given the same layers without it."""
    import torchmetrics.functional.image.lpips as published

    weights = alexnet()
    torch.save(weights, tmp_path / perceptual.ALEXNET)
    network, missing = perceptual.find_lpips(tmp_path / perceptual.ALEXNET)
    assert (missing, network is not None) == ("", True)

    def layers(net: str, pretrained: bool = False) -> nn.Sequential:
        found: list[nn.Module] = []
        for place, (inner, outer, side, stride, padding) in perceptual._CONVOLUTIONS.items():
            layer = nn.Conv2d(inner, outer, side, stride, padding)
            layer.load_state_dict({part: weights[f"features.{place}.{part}"] for part in ("weight", "bias")})
            found += [layer, nn.ReLU(inplace=False)] + ([nn.MaxPool2d(3, 2)] if place in (0, 3, 10) else [])
        assert net == "alexnet"
        return nn.Sequential(*found)

    monkeypatch.setattr(published, "_get_tv_model_features", layers)
    twin = published._LPIPS(pretrained=True, net="alex")
    one, other = pictures(1, 6), pictures(2, 6)
    assert network is not None
    with torch.no_grad():
        wanted = twin(one, other, normalize=True).flatten()
    assert network(one, other).numpy() == pytest.approx(wanted.numpy(), rel=1e-4)
    assert float(wanted.min()) > 0
    assert float(network(one, one).abs().max()) < 1e-6


def test_weights_of_alexnet_are_also_found_in_torchs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    reason = find_judges().reasons["lpips"]
    assert reason == (
        "cannot be had: no weights of AlexNet were given, and torch's cache has none at "
        f"{tmp_path / 'checkpoints' / perceptual.ALEXNET}"
    )
    (tmp_path / "checkpoints").mkdir()
    torch.save(alexnet(), tmp_path / "checkpoints" / perceptual.ALEXNET)
    assert find_judges().lpips is not None
    with pytest.raises(NotFoundError, match="no such file of AlexNet's weights"):
        find_judges(lpips=tmp_path / "absent.pth")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(FileFormatError, match="does not hold AlexNet's features"):
        find_judges(lpips=tmp_path / "bad.pth")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(FileFormatError, match="does not hold AlexNet's features"):
        find_judges(lpips=tmp_path / "other.pth")


def drawn(tmp_path: Path, side: int, **judges: Any) -> dict[str, Any]:
    """The scores of the combination at two steps, by name."""
    pipe = pipes.sd15()
    fast = Acceleration("LCMScheduler", guidance=1.0, steps=2)
    plan = Plan(("a cat", "dog"), seeds=(0, 7), steps=(2,), reference_steps=3, samplers=("ddim",), acceleration=fast)
    plan = Plan(**{**vars(plan), "height": side, "width": side})
    found = generate(pipe, terms(pipe), plan, tmp_path / "pictures", judges=find_judges(**judges))
    return {score.name: score for score in found.scores if score.cell == found.cells[-1]}


def test_every_score_is_had_when_its_network_is_at_hand(clip: Path, tmp_path: Path) -> None:
    torch.save(alexnet(), tmp_path / "alexnet.pth")
    program = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    shape = ({0: torch.export.Dim("count", max=512)},)

    class Means(nn.Module):
        def forward(self, pictures: Tensor) -> Tensor:
            return program(pictures.float())  # type: ignore[no-any-return]

    like = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    torch.export.save(torch.export.export(Means(), (like,), dynamic_shapes=shape), tmp_path / "means.pt2")
    found = drawn(tmp_path, 32, features=tmp_path / "means.pt2", clip=clip, lpips=tmp_path / "alexnet.pth")
    for name in ("lpips", "features", "frechet", "clip"):
        score = found[name]
        assert score.reason == ""
        assert score.value is not None
        assert score.spread is not None
        assert score.low is not None
        assert score.high is not None
        assert np.isfinite(score.value)
    assert found["frechet"].value > 0
    assert len(found["clip"].values) == len(found["lpips"].values) == 4


def test_a_score_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    torch.save(alexnet(), tmp_path / "alexnet.pth")
    found = drawn(tmp_path, 16, lpips=tmp_path / "alexnet.pth")
    reasons = {name: score.reason for name, score in found.items() if score.value is None}
    assert reasons == {
        "lpips": "cannot be had: LPIPS takes pictures of at least 31 pixels a side",
        "features": "cannot be had: no feature model was given",
        "frechet": "cannot be had: no feature model was given",
        "clip": "cannot be had: no folder of a CLIP model was given",
    }


def test_without_torchmetrics_it_is_said_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LorahubError, match=r"needs torchmetrics: pip install 'lorahub-toolkit\[validate\]'"):
        find_judges()
