"""The answer in every form: the function, the command and its exit codes, SARIF, and the registry."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import lorahub
from lorahub.cli import main
from lorahub.errors import NotFoundError, UsageError
from lorahub.studio import shipped
from lorahub.validate.finding import Finding, Severity, worst
from lorahub.validate.page import write_page
from lorahub.validate.picturing import Pictures
from lorahub.validate.report import Report
from lorahub.validate.running import validate
from lorahub.validate.sarif import to_sarif
from lorahub.workspace.adding import add
from lorahub.workspace.core import Workspace
from registry.records import RunSettings
from tests.validate import files

QUICK = ("finite", "zero", "orphans")
"""Checks that need neither diffusers nor a replay."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a sound file, one with an idle layer, one without a factor; no registry."""
    monkeypatch.setenv("LORAHUB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    files.sound(tmp_path, "sound")
    idle = files.kohya(files.pairs())
    idle[f"{files.stem(files.LAYERS[0])}.lora_up.weight"].zero_()
    files.write(tmp_path / "idle.safetensors", idle)
    del idle[f"{files.stem(files.LAYERS[0])}.lora_up.weight"]
    files.write(tmp_path / "broken.safetensors", idle)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["validate", *arguments], prog_name="lorahub")


def quickly(*arguments: str) -> Result:
    return run(*arguments, *(word for name in QUICK for word in ("--only", name)))


def test_severities_from_best_to_worst() -> None:
    by_badness = [Severity.PASS, Severity.WARNING, Severity.INCONCLUSIVE, Severity.FAIL]
    assert sorted(Severity, key=lambda each: each.badness) == by_badness
    assert worst([]) is Severity.INCONCLUSIVE
    assert worst([Finding("a", Severity.WARNING, ""), Finding("b", Severity.PASS, "")]) is Severity.WARNING
    assert Finding("a", Severity.FAIL, "", value=float("inf")).to_json()["value"] is None


@pytest.mark.parametrize(
    ("text", "code", "verdict", "passes"),
    [
        ("sound.safetensors", 0, "pass", "3 of 3"),
        ("idle.safetensors", 0, "warning", "2 of 3"),
        ("broken.safetensors", 7, "fail", "1 of 3"),
    ],
)
def test_the_command_says_the_verdict_first(text: str, code: int, verdict: str, passes: str) -> None:
    result = quickly(text)
    assert result.exit_code == code, result.output
    first, *doubts, last = result.stdout.splitlines()
    assert first.startswith(f"{text}: {verdict} (")
    assert last == f"  {passes} findings are passes"
    assert all(line.split(":")[0].strip() in ("warning", "fail", "inconclusive") for line in doubts)
    assert bool(doubts) == (verdict != "pass")


def test_what_cannot_be_judged_is_no_pass() -> None:
    result = run("broken.safetensors", "--only", "rank")
    assert result.exit_code == 8
    assert "inconclusive: rank: cannot be judged: module 'lora_unet." in result.stdout


def test_requests_that_are_refused() -> None:
    assert run("nothing.safetensors").exit_code == 4
    assert run("sound.safetensors", "--only", "nonsense").exit_code == 2
    assert run("sound.safetensors", "--only", "claims").exit_code == 2
    assert run("sound.safetensors", "--for", "nobody").exit_code == 2
    assert quickly("sound.safetensors", "--sarif", "no/such/folder.sarif").exit_code == 4
    with pytest.raises(UsageError, match="no consumer"):
        validate("sound.safetensors", targets=["nobody"])
    with pytest.raises(NotFoundError):
        validate("nothing.safetensors")


def test_the_json_has_every_number() -> None:
    result = quickly("0.5*sound.safetensors - idle.safetensors", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["schema"], report["command"], report["verdict"]) == (1, "validate", "pass")
    assert report["expression"] == "0.5*sound.safetensors - 1*idle.safetensors"
    assert report["base"] == "sd15"
    assert [*report["files"]] == ["sound.safetensors", "idle.safetensors"]
    assert {finding["check"] for finding in report["findings"]} == set(QUICK)
    assert report["numbers"]["layer_count"] == 12
    assert report["numbers"]["rank_stored"] == 8  # 4 of each
    assert report["ran"].startswith("lorahub validate '0.5*sound.safetensors - idle.safetensors' --json --only finite")
    assert report["versions"]["torch"]


def test_a_claim_is_held_against_the_file() -> None:
    assert run("sound.safetensors", "--only", "claims", "--against", "sound.safetensors").exit_code == 0
    result = run("sound.safetensors", "--only", "claims", "--against", "0.5*sound.safetensors")
    assert result.exit_code == 7
    assert "everywhere it is 2 times that" in result.stdout


def test_sarif_is_what_the_standard_asks_for() -> None:
    assert quickly("broken.safetensors", "--only", "rank", "--sarif", "found.sarif").exit_code == 7
    log = json.loads(Path("found.sarif").read_text())
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (one,) = log["runs"]
    driver = one["tool"]["driver"]
    assert driver["name"] == "lorahub"
    rules = [rule["id"] for rule in driver["rules"]]
    assert len(set(rules)) == len(rules)
    assert all(rule["shortDescription"]["text"].endswith(".") for rule in driver["rules"])
    for result in one["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["message"]["text"]
        assert (result["kind"], result["level"]) in {
            ("pass", "none"),
            ("fail", "warning"),
            ("open", "none"),
            ("fail", "error"),
        }
        (place,) = result["locations"]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == Path("broken.safetensors").absolute().as_uri()
    by_rule = {result["ruleId"]: result for result in one["results"]}
    assert (by_rule["orphans"]["kind"], by_rule["orphans"]["level"]) == ("fail", "error")
    assert by_rule["orphans"]["locations"][0]["logicalLocations"][0]["fullyQualifiedName"].endswith("lora_down.weight")
    assert (by_rule["rank"]["kind"], by_rule["rank"]["level"]) == ("open", "none")
    assert one["invocations"] == [{"executionSuccessful": True, "commandLine": one["invocations"][0]["commandLine"]}]


def test_sarif_places_findings_at_their_operands() -> None:
    report = validate("sound.safetensors + idle.safetensors", only=("finite", "zero"))
    places = [
        [Path(each["physicalLocation"]["artifactLocation"]["uri"]).name for each in result["locations"]]
        for result in to_sarif(report)["runs"][0]["results"]
    ]
    assert places == [["sound.safetensors"], ["idle.safetensors"], ["sound.safetensors", "idle.safetensors"]]


def test_findings_are_kept_with_a_version_of_the_registry() -> None:
    with Workspace.open() as workspace:
        add(workspace, [Path("idle.safetensors")])
    assert run("idle").exit_code == 0
    shown = CliRunner().invoke(main, ["show", "idle"], prog_name="lorahub").stdout.splitlines()
    assert "  warning: verdict: warning" in shown
    assert (
        "  warning: zero: 1 of 12 layers are zero, such as unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q"
        in shown
    )
    with Workspace.open() as workspace:
        before = workspace.registry.validations("idle")
        assert all(row.tool.startswith("lorahub") for row in before)
    assert run("idle", "--only", "claims", "--against", "0.5*idle").exit_code == 7  # replaces nothing of the others
    assert quickly("idle", "--no-record").exit_code == 0
    assert quickly("0.5*idle").exit_code == 0  # another vector
    with Workspace.open() as workspace:
        after = workspace.registry.validations("idle")
    assert {row.check for row in after} - {row.check for row in before} == {"claims"}
    assert [row.severity for row in after if row.check == "verdict"] == ["warning"]


def test_no_registry_is_made_for_a_file(here: Path) -> None:
    assert quickly("sound.safetensors").exit_code == 0
    assert not (here / "home").exists()


def test_the_package_is_the_function() -> None:
    program = (
        "import lorahub as lh; r = lh.validate('sound.safetensors', only=['finite']); import lorahub.validate; "
        "assert lh.validate('sound.safetensors', only=['finite']).verdict == r.verdict; print(r.verdict, lh.Report.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["pass", "Report"]
    assert isinstance(lorahub.validate("sound.safetensors", only=["finite"]), Report)


def test_a_base_model_is_compared_with_put_on_and_drawn_with(here: Path) -> None:
    """The tiny Stable Diffusion that ships with lorahub is not listed: its own layers tell what fits."""
    wish = Pictures(
        ("red star on teal",), seeds=(0, 1), steps=(1,), reference_steps=2, samplers=("ddim",), folder=here / "p"
    )
    with Workspace.open() as workspace:
        add(workspace, [shipped.path("stripes"), shipped.path("lcm")])
        workspace.registry.edit("lcm", kind="acceleration", run=RunSettings(scheduler="LCMScheduler", steps=1))
    base_model = shipped.SHIPPED / "pipeline"
    report = validate("stripes + lcm", base_model=base_model, pictures=wish, only=("base", "coverage"))
    assert report.base is not None
    assert report.base.startswith("sd15-like-")
    by_check = {finding.check: finding for finding in report.findings}
    assert {name for name, one in by_check.items() if one.severity is Severity.PASS} >= {
        "base",
        "coverage",
        "numeric.baked",
    }
    assert report.numbers["steps"].keys() == {"base", "runtime", "fused"}
    assert report.generation is not None
    drawn = report.generation.to_json()
    assert drawn["plan"]["acceleration"]["scheduler"] == "LCMScheduler"
    assert len([*(here / "p").glob("*.png")]) == sum(len(cell["pictures"]) for cell in drawn["cells"]) > 4
    write_page(report, here / "report.html")
    assert "sd15-like-" in (here / "report.html").read_text()
    sound = validate("sound.safetensors", base_model=base_model, base=report.base, only=("base",), record=False)
    assert "does not fit sd15-like-" in next(one.message for one in sound.findings if one.check == "base")
    with pytest.raises(UsageError, match="base model"):
        validate("stripes", pictures=wish)
    assert run("stripes", "--steps", "1,2").exit_code == 2
    assert run("stripes", "--prompt", "a", "--steps", "1,x").exit_code == 2


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("sd15-disney.kohya", Severity.PASS),
        ("sd15-disney.cloneofsimo", Severity.WARNING),  # neither diffusers nor ComfyUI reads it
        ("sd2-disney.kohya", Severity.WARNING),  # a quarter of its layers is zero
        ("sd2-popart.kohya", Severity.WARNING),
        ("sd2-popart.diffusers", Severity.WARNING),
    ],
)
def test_published_files(real_loras: Path, here: Path, name: str, verdict: Severity) -> None:
    copy = here / f"{name}.safetensors"
    shutil.copy(real_loras / copy.name, copy)
    report = validate(copy)
    assert report.verdict is verdict
    doubts = {finding.check for finding in report.findings if finding.severity is not Severity.PASS}
    assert doubts <= {"zero", "diffusers", "comfyui"}
