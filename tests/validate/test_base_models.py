"""The base model in each form that people have it, loaded once; and what becomes of pictures that nobody keeps."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from lorahub.errors import FileFormatError, NotFoundError, UsageError
from lorahub.validate import base_model as holding
from lorahub.validate.base_model import BaseModel
from lorahub.validate.picturing import Pictures
from lorahub.validate.pipelines import load_pipeline
from lorahub.validate.running import validate
from lorahub.validate.tuning import tune
from tests.checkpoints import making
from tests.checkpoints.test_opening import real_names
from tests.cli.conftest import SCRIPT, Run, run as run_fixture
from tests.hub.conftest import hub as hub_fixture
from tests.hub.server import Hub
from tests.validate import pipes, studio

hub, run = hub_fixture, run_fixture
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
DRAWN = ("--prompt", studio.PROMPT, "--seeds", "0", "--reference-steps", "2", "--sampler", "ddim")
WISH = {"prompts": (studio.PROMPT,), "seeds": (0,), "steps": (1,), "reference_steps": 2, "samplers": ("ddim",)}
"""Four pictures of a style: the base's and the style's, at two steps and at one."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the style, and no registry."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "no-registry"))
    studio.vectors(tmp_path, "stripes")
    return tmp_path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was loaded, call by call."""
    calls: list[Any] = []

    def counted(base: Any, *given: Any, **named: Any) -> Any:
        calls.append(base)
        return load_pipeline(base, *given, **named)

    monkeypatch.setattr(holding, "load_pipeline", counted)
    return calls


def checked(run: Run, base_model: str | Path, *more: str | Path) -> dict[str, Any]:
    """`lorahub validate` on a base model: the denoiser's answers and four pictures, kept in `pictures`."""
    words = (
        "--base-model",
        base_model,
        "--device",
        "cpu",
        "--steps",
        "1",
        "--only",
        "finite",
        "--pictures",
        "pictures",
    )
    result = run("validate", "stripes.safetensors", *words, *DRAWN, *more, "--json")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert result.stdout, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    severities = {finding["check"]: finding["severity"] for finding in report["findings"]}
    assert (severities["numeric.fused"], severities["numeric.baked"]) == ("pass", "pass")
    assert report["generation"]["base"] == str(base_model)
    assert len([*Path("pictures").iterdir()]) == 4
    return report


def test_a_repository_of_the_hub(hub: Hub, run: Run, loads: list[Any]) -> None:
    files = {str(path.relative_to(studio.PIPELINE)): path.read_bytes() for path in studio.PIPELINE.rglob("*.*")}
    hub.repo("user/tiny", files)
    studio.vectors(Path(), "stripes")
    checked(run, "user/tiny")
    assert loads == ["user/tiny"], "numeric checks and pictures share it"
    asked = len(hub.requests)
    words = ("--base-model", "user/tiny", "--device", "cpu", "--steps", "1", *DRAWN, "--score", "psnr", "--budget", "4")
    told = run(
        "tune",
        "stripes.safetensors",
        *words,
        "--vary",
        "stripes.safetensors=0.5:1:0.5",
        "--pictures",
        "pictures",
        "--json",
    )
    assert told.exit_code == 0, told.output
    assert len(json.loads(told.stdout)["trials"]) == 2
    assert not any("safetensors" in request.path for request in hub.requests[asked:]), "the weights are in the cache"
    refused = run("validate", "stripes.safetensors", "--base-model", "user/nothing", *DRAWN, "--steps", "1")
    assert refused.exit_code == 4
    assert refused.stderr.startswith("Error: base model user/nothing: no such repository")
    with hub.gone():
        refused = run("validate", "stripes.safetensors", "--base-model", "user/other", *DRAWN, "--steps", "1")
    assert refused.exit_code == 5
    assert "the Hub cannot be reached" in refused.stderr


def test_a_single_file_with_the_configuration_beside_it(run: Run, loads: list[Any]) -> None:
    checked(run, studio.PIPELINE)
    before = {path: path.stat().st_mtime_ns for path in Path("pictures").iterdir()}
    file = studio.single_file(Path("studio.safetensors"))
    checked(run, file, "--base-config", studio.PIPELINE)
    assert {path: path.stat().st_mtime_ns for path in Path("pictures").iterdir()} == before, "the very same weights"
    words = ("--device", "cpu", "--steps", "1", *DRAWN, "--score", "psnr", "--budget", "4", "--pictures", "pictures")
    vary = ("--vary", "stripes.safetensors=0.5:1:0.5")
    told = run("tune", "stripes.safetensors", "--base-model", file, "--base-config", studio.PIPELINE, *words, *vary)
    assert told.exit_code == 0, told.output
    assert loads == [str(studio.PIPELINE), str(file), str(file)]


def test_a_single_file_that_cannot_be_loaded_says_what_to_do(tmp_path: Path) -> None:
    file = studio.single_file(tmp_path / "studio.safetensors")
    with pytest.raises(UsageError, match=r"its layers are those of no base that draws here: give .* --base-config"):
        load_pipeline(file, "cpu", None)
    with pytest.raises(UsageError, match="--base-config is for a single file"):
        load_pipeline(studio.PIPELINE, "cpu", None, config=studio.PIPELINE)
    with pytest.raises(NotFoundError, match="no such folder of a configuration"):
        load_pipeline(file, "cpu", None, config=tmp_path / "absent")
    with pytest.raises(FileFormatError, match=r"no readable model_index\.json"):
        load_pipeline(file, "cpu", None, config=tmp_path)
    pipes.sd15().save_pretrained(tmp_path / "another")
    with pytest.raises(FileFormatError, match=r"studio\.safetensors cannot be loaded: ") as caught:
        load_pipeline(file, "cpu", None, config=tmp_path / "another")
    assert "\n" not in str(caught.value)


def test_without_a_configuration_the_hub_is_asked_for_that_of_the_base(hub: Hub, run: Run, tmp_path: Path) -> None:
    studio.vectors(Path(), "stripes")
    file = making.hollow(tmp_path / "sd15.safetensors", real_names("sd15"))
    words = ("--base-model", file, "--device", "cpu", "--steps", "1", *DRAWN)
    refused = run("validate", "stripes.safetensors", *words)
    assert (refused.exit_code, refused.stdout) == (4, "")
    assert f"Error: {file}: its configuration, which --base-config can give: no such repository" in refused.stderr
    assert any("stable-diffusion-v1-5" in request.path for request in hub.requests)
    with hub.gone():
        refused = run("validate", "stripes.safetensors", *words)
    assert refused.exit_code == 5
    assert "--base-config can give: the Hub cannot be reached" in refused.stderr


def test_a_base_model_is_loaded_when_it_is_needed_and_once(loads: list[Any], here: Path) -> None:
    held = BaseModel(studio.PIPELINE, "cpu")
    assert loads == []
    assert held.loaded[0] is held.loaded[0]
    assert loads == [studio.PIPELINE]
    live = BaseModel(held.loaded[0])
    assert live.loaded[0] is held.loaded[0]
    assert loads == [studio.PIPELINE], "a live pipeline is there already"
    (here / "damaged.safetensors").write_bytes(b"x" * 40)
    report = validate("damaged.safetensors", base_model=here / "nothing", pictures=Pictures(**WISH), record=False)  # type: ignore[arg-type]
    assert report.verdict.value == "fail", "nothing can be put on it, so it is not looked for"


def test_pictures_that_nobody_keeps_go_with_the_result(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = tmp_path / "temporary"
    passing.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(passing))
    report = validate(
        "stripes.safetensors",
        base_model=studio.PIPELINE,
        pictures=Pictures(**WISH),
        only=("finite",),
        record=False,  # type: ignore[arg-type]
    )
    assert report.generation is not None
    assert len([*passing.rglob("*.png")]) == 4
    facts = report.generation.to_json()
    assert {picture["path"] for cell in facts["cells"] for picture in cell["pictures"]} == {None}
    del report
    assert [*passing.iterdir()] == []
    words = ("--base-model", studio.PIPELINE, "--device", "cpu", "--steps", "1", "--only", "finite", *DRAWN)
    result = run("validate", "stripes.safetensors", *words, "-o", "report.html")
    assert "data:image" in Path("report.html").read_text()
    assert result.stdout.startswith("stripes.safetensors: ")
    del result  # it holds the exception that ended the command, and so the command's variables
    gc.collect()
    assert [*passing.iterdir()] == []


def test_they_go_too_when_drawing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passing = tmp_path / "temporary"
    passing.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(passing))

    def stop(done: int, total: int, what: str) -> None:
        assert [*passing.rglob("*.png")]
        raise KeyboardInterrupt

    wish = Pictures(**WISH)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        tune("stripes.safetensors", studio.PIPELINE, wish, vary=["stripes.safetensors=0:1"], progress=stop)
    with pytest.raises(UsageError, match="too small"):
        tune("stripes.safetensors", studio.PIPELINE, wish, vary=["stripes.safetensors=0:1"], budget=2)
    assert [*passing.iterdir()] == []


def test_an_interrupted_command_leaves_nothing(tmp_path: Path) -> None:
    passing = tmp_path / "temporary"
    passing.mkdir()
    words = ["--base-model", str(studio.PIPELINE), "--device", "cpu", "--prompt", studio.PROMPT, "--only", "finite"]
    words += ["--reference-steps", "3", "--steps", "2", "--sampler", "ddim"]
    process = subprocess.Popen(
        [SCRIPT, "validate", "stripes.safetensors", *words, "--seeds", ",".join(map(str, range(400)))],
        env={**os.environ, "TMPDIR": str(passing), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 120
    while not [*passing.rglob("*.png")] and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, b"", b"Interrupted.\n")
    assert [path for path in passing.iterdir() if path.name.startswith("lorahub")] == []
