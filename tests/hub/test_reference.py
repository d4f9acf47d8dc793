"""user/repo[@revision][:file]"""

from __future__ import annotations

import pytest

from lorahub.errors import UsageError
from lorahub.hub.reference import HubReference, parse, reads_as_hub


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("user/repo", HubReference("user/repo")),
        ("my-org/lora_v1.5-x", HubReference("my-org/lora_v1.5-x")),
        ("user/repo@main", HubReference("user/repo", "main")),
        ("user/repo@refs/pr/3:a/b c.safetensors", HubReference("user/repo", "refs/pr/3", "a/b c.safetensors")),
        ("user/repo:x.safetensors", HubReference("user/repo", None, "x.safetensors")),
    ],
)
def test_parse(text: str, reference: HubReference) -> None:
    assert reads_as_hub(text)
    assert parse(text) == reference
    assert str(reference) == text


@pytest.mark.parametrize(
    "text", ["", "repo", "a/b/c", "./a/b", "../a", "/a/b", "a/", "~/x", "a b/c", "ü/x", "user/repo@", "user/repo:", "a/b:c:d"]
)  # fmt: skip
def test_what_is_no_reference(text: str) -> None:
    assert not reads_as_hub(text)
    with pytest.raises(UsageError, match=r"expected user/repo\[@revision\]\[:file\]"):
        parse(text)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".SAFETENSORS"])
def test_a_path_of_weights_is_not_asked_of_the_hub(suffix: str) -> None:
    assert not reads_as_hub(f"loras/style{suffix}")
