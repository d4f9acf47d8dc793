from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lorahub import header
from lorahub.errors import FileFormatError, NotFoundError
from lorahub.files.loading import load_path
from lorahub.files.saving import save
from lorahub.workspace import structure
from lorahub.workspace.facts import HASHES, full_facts, header_facts, triggers
from lorahub.workspace.weights import FINITE, ZERO, read_weights


def test_the_header_tells_format_base_ranks_scale_and_origin(tmp_path: Path, make_adapter: Any) -> None:
    tags = json.dumps({"10_cat": {"cat": 9, "paper": 20}, "5_dog": {"dog": 3, "cat": 1}})
    path = make_adapter(
        tmp_path / "paper.safetensors",
        base="sdxl",
        rank=4,
        alpha=2.0,
        metadata={
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_tag_frequency": tags,
            "modelspec.trigger_phrase": "ppr style",
            "modelspec.license": "mit",
            "sshs_model_hash": "ab" * 32,
        },
    )
    (tmp_path / "paper.preview.png").touch()
    (tmp_path / "papers.png").touch()

    facts = header_facts(path).facts

    assert (facts.format, facts.base_detected, facts.base_declared) == ("kohya", "sdxl", "sdxl")
    assert (facts.ranks, facts.layers, facts.scale, facts.dtype) == ({"unet": (4,)}, {"unet": 12}, 0.5, "F16")
    assert facts.parameters == sum(
        info.stop // 2 - info.start // 2 for name, info in header.read(path).tensors.items() if "alpha" not in name
    )
    assert facts.trigger_words == ("ppr style", "paper", "cat", "dog")
    assert (facts.licence, facts.autov3, facts.kind) == ("mit", "ab" * 6, "other")
    assert facts.previews == (str(tmp_path / "paper.preview.png"),)
    assert facts.source == {"path": str(path)}
    assert not facts.hashed
    assert facts.evidence


def test_reading_headers_imports_neither_torch_nor_sqlalchemy(tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "a.safetensors")
    program = (
        "import sys; from pathlib import Path; from lorahub.workspace.facts import header_facts, full_facts\n"
        "header_facts(Path(sys.argv[1])); full_facts(Path(sys.argv[1]), weights=False)\n"
        "assert not {'torch', 'sqlalchemy', 'numpy'} & set(sys.modules)"
    )

    subprocess.run([sys.executable, "-c", program, path], check=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "metadata", "kind"),
    [
        ("lcm-lora-sdv1-5", {}, "acceleration"),
        ("age_slider", {}, "slider"),
        ("sliderhouse", {}, "other"),
        ("control-lora-depth", {}, "control"),
        ("anything", {"lorahub.provenance": "{}"}, "merged"),
        ("anything", {"ss_output_name": "lcm_lora_sd15"}, "acceleration"),
    ],
)
def test_kinds_are_given_on_plain_evidence(
    tmp_path: Path, make_adapter: Any, name: str, metadata: dict[str, str], kind: str
) -> None:
    facts = header_facts(make_adapter(tmp_path / f"{name}.safetensors", metadata=metadata)).facts

    assert facts.kind == kind
    assert (facts.run is not None) == (kind == "acceleration")


def test_both_hashes_come_from_one_pass_and_are_compared_with_the_claim(tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "a.safetensors")
    data_sha256 = header.data_sha256(path, header.read(path))
    claims = {"right": data_sha256, "wrong": "ab" * 32, "empty": hashlib.sha256(b"").hexdigest()}
    found = {
        name: full_facts(
            make_adapter(tmp_path / f"{name}.safetensors", metadata={"sshs_model_hash": claim}), weights=False
        )
        for name, claim in claims.items()
    }

    for one in found.values():
        assert one.facts.data_sha256 == data_sha256
        assert one.facts.hashed
    whole = hashlib.sha256((tmp_path / "right.safetensors").read_bytes()).hexdigest()
    assert found["right"].facts.file_sha256 == whole
    severities = {name: [each.severity for each in one.findings if each.check == HASHES] for name, one in found.items()}
    assert severities == {"right": ["ok"], "wrong": ["warning"], "empty": ["info"]}
    assert found["empty"].facts.autov3 is None


def test_structures_are_remembered_but_alphas_and_metadata_are_not(tmp_path: Path, make_adapter: Any) -> None:
    one = header_facts(make_adapter(tmp_path / "one.safetensors", alpha=2.0, metadata={"ss_output_name": "x"})).facts
    before = len(structure._memory)
    two = header_facts(make_adapter(tmp_path / "two.safetensors", alpha=1.0, metadata={"ss_output_name": "y"})).facts

    assert len(structure._memory) == before
    assert (one.scale, two.scale) == (1.0, 0.5)
    assert (one.trigger_words, two.trigger_words) == (("x",), ("y",))


def test_the_scale_of_a_header_is_that_of_a_sample_until_all_alphas_are_read(tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "a.safetensors")
    tensors = load_file(path)
    odd = [name for name in tensors if name.endswith(".alpha")][1]
    save_file({**tensors, odd: np.asarray(1.0, "float16")}, path)

    assert header_facts(path).facts.scale == 1.0
    assert full_facts(path, weights=False).facts.scale is None


def test_what_metadata_claim_of_the_base_is_not_remembered(tmp_path: Path, make_adapter: Any) -> None:
    right = header_facts(make_adapter(tmp_path / "a.safetensors", metadata={"ss_base_model_version": "sd_v1"})).facts
    wrong = header_facts(make_adapter(tmp_path / "b.safetensors", metadata={"ss_base_model_version": "flux1"})).facts

    assert (right.base_detected, right.base_declared) == ("sd15", "sd15")
    assert (wrong.base_detected, wrong.base_declared) == ("sd15", "flux1")


@pytest.mark.parametrize("alpha", [None, 0.5, 4.0])
def test_a_fingerprint_is_the_same_in_every_spelling(tmp_path: Path, make_adapter: Any, alpha: float | None) -> None:
    plain = read_weights(make_adapter(tmp_path / "a.safetensors", spelling="diffusers"))
    kohya = read_weights(make_adapter(tmp_path / "b.safetensors", spelling="kohya", alpha=alpha))
    other = read_weights(make_adapter(tmp_path / "c.safetensors", seed=1))

    assert plain.fingerprint == kohya.fingerprint
    assert plain.norms == pytest.approx(dict(kohya.norms or {}))
    assert other.fingerprint != plain.fingerprint


def test_a_fingerprint_survives_lorahubs_own_conversions(tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "a.safetensors", alpha=0.5)
    adapter = load_path(path)
    save(adapter, tmp_path / "kohya.safetensors", format="kohya")
    save(adapter, tmp_path / "diffusers.safetensors", format="diffusers")
    save(adapter, tmp_path / "peft.d", format="peft")
    written = [tmp_path / "kohya.safetensors", tmp_path / "diffusers.safetensors"]
    written.append(next((tmp_path / "peft.d").rglob("*.safetensors")))

    assert {read_weights(each).fingerprint for each in [path, *written]} == {read_weights(path).fingerprint}


def test_the_published_pair_in_two_spellings_has_one_fingerprint(real_loras: Path) -> None:
    kohya = full_facts(real_loras / "sd2-popart.kohya.safetensors").facts
    diffusers = full_facts(real_loras / "sd2-popart.diffusers.safetensors").facts

    assert kohya.fingerprint == diffusers.fingerprint
    assert kohya.file_sha256 != diffusers.file_sha256


def test_norms_are_those_of_the_matrices(tmp_path: Path, make_adapter: Any) -> None:
    path = make_adapter(tmp_path / "a.safetensors")
    norms = read_weights(path).norms

    assert norms == pytest.approx(
        {name: float(layer.dense(torch.float64).norm()) for name, layer in load_path(path).layers.items()}
    )


def test_damage_in_the_weights_is_found(tmp_path: Path, make_adapter: Any) -> None:
    tensors = load_file(make_adapter(tmp_path / "a.safetensors"))
    key = next(name for name in tensors if "lora_up" in name)
    save_file({**tensors, key: tensors[key] * 0}, tmp_path / "zero.safetensors")
    save_file({**tensors, key: np.full_like(tensors[key], np.nan)}, tmp_path / "nan.safetensors")

    zero, nan = read_weights(tmp_path / "zero.safetensors"), read_weights(tmp_path / "nan.safetensors")

    assert [(one.severity, one.layer is not None) for one in zero.findings if one.check == ZERO] == [("warning", True)]
    assert [(one.severity, one.layer) for one in nan.findings if one.check == FINITE] == [("error", key)]
    assert (nan.fingerprint, nan.norms) == (None, None)


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 8, b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", b"PK\x03\x04" + b"0" * 90],
)
def test_files_that_are_none_are_refused_with_the_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)

    with pytest.raises(FileFormatError):
        header_facts(path)


def test_pipes_and_nothing_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")

    with pytest.raises(FileFormatError, match="not a regular file"):
        header_facts(tmp_path / "pipe.safetensors")
    with pytest.raises(NotFoundError):
        header_facts(tmp_path / "none.safetensors")


def test_hostile_tag_lists_are_bounded() -> None:
    many = json.dumps({"d": {f"tag {i} " + "x" * 1000: i for i in range(1, 5000)}})

    assert len(triggers({"ss_tag_frequency": many})) == 20
    assert max(map(len, triggers({"ss_tag_frequency": many}))) == 100
    for broken in ("[1]", "{", '{"a": [1]}', '{"a": {"b": "c"}}', "[" * 100_000, "null"):
        assert triggers({"ss_tag_frequency": broken}) == ()
