"""user/repo[@revision][:file]"""

from __future__ import annotations

import pytest

from lorahub.errors import UsageError, VerificationError
from lorahub.hub.reference import HubReference, check_file_name, parse, reads_as_hub


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


@pytest.mark.parametrize(
    "name", ["a.safetensors", "a b/ü.safetensors", "unet/adapter_model.safetensors", "com.safetensors"]
)
def test_names_of_files(name: str) -> None:
    check_file_name(name, "user/repo")


@pytest.mark.parametrize(
    "name", ["", "..", "a/../b", "/a", "C:/a", "a\\b", "NUL", "com1.bin", "a.", "a /b", "a\nb", "x" * 256]
)
def test_names_that_are_no_file_names_somewhere(name: str) -> None:
    with pytest.raises(VerificationError, match="user/repo holds a file with a name that is not safe to write"):
        check_file_name(name, "user/repo")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".SAFETENSORS"])
def test_a_path_of_weights_is_not_asked_of_the_hub(suffix: str) -> None:
    assert not reads_as_hub(f"loras/style{suffix}")
