"""lorahub combine. 0.8 * style + lcm is diag(2.6, 0.8, 2, 0.5) in every layer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lorahub import header
from tests.cli import adapters
from tests.cli.conftest import Run, script

EXPRESSION = "0.8*style.safetensors + 1.0*lcm.safetensors"


def test_without_a_rule_the_ranks_add_up(folder: Path, run: Run) -> None:
    result = run("combine", EXPRESSION, "-o", "fast.safetensors")
    size = (folder / "fast.safetensors").stat().st_size
    assert result.exit_code == 0
    assert result.stderr == ""
    assert re.fullmatch(
        rf"fast\.safetensors: sd15, kohya, fp16, {size / 1000:.3g} kB\n"
        r"  12 layers, rank 5\n"
        r"  read back and compared: ΔW differs by \d\.\de-04 of its norm \(fp16 rounding\)\n",
        result.stdout,
    )
    assert adapters.diagonals(folder / "fast.safetensors") == [pytest.approx([2.6, 0.8, 2, 0.5, 0], abs=2e-3)] * 12


def test_a_rule_keeps_the_largest_singular_values_and_says_what_it_cost(folder: Path, run: Run) -> None:
    result = run("combine", EXPRESSION, "-o", "fast.safetensors", "--rank", "2")
    assert result.exit_code == 0
    assert re.fullmatch(
        r"fast\.safetensors: sd15, kohya, fp16, [\d.]+ kB\n"
        r"  12 layers, rank 2 \(was 5\)\n"
        r"  fixed\(2\) leaves out 27\.640% of the norm\n"  # sqrt(0.89 / 11.65)
        r"  read back and compared: ΔW differs by \d\.\de-04 of its norm \(fp16 rounding\)\n",
        result.stdout,
    )
    assert adapters.diagonals(folder / "fast.safetensors") == [pytest.approx([2.6, 0, 2, 0, 0], abs=2e-3)] * 12


def test_json_has_numbers(folder: Path, run: Run) -> None:
    result = run("combine", EXPRESSION, "-o", "fast.safetensors", "--relative", "0.3", "--dtype", "fp32", "--json")
    facts = json.loads(result.stdout)
    assert facts["size"] == (folder / "fast.safetensors").stat().st_size
    assert facts["error"] == pytest.approx(math.sqrt(12 * 0.89))
    assert facts["relative_error"] == pytest.approx(math.sqrt(0.89 / 11.65))
    assert facts["read_back_error"] < 1e-6
    expected = {"schema": 1, "command": "combine", "output": "fast.safetensors", "base": "sd15", "format": "kohya"}
    expected |= {"dtype": "fp32", "layers": 12, "rank_before": 5, "rank_min": 2, "rank_max": 2, "rule": "relative(0.3)"}
    assert facts.items() >= expected.items()
    written = header.read(folder / "fast.safetensors")
    assert facts["data_sha256"] == written.metadata["sshs_model_hash"]
    assert facts["data_sha256"] == header.data_sha256(folder / "fast.safetensors", written)
    assert facts["expression"] == "truncate(0.8*style + 1*lcm, rule=relative(0.3))"


@pytest.mark.parametrize("size", ["60kB", "60000", "58.59375KiB", "0.06MB"])
def test_max_size_is_kept_in_every_unit(folder: Path, run: Run, size: str) -> None:
    result = run("combine", EXPRESSION, "-o", "fast.safetensors", "--max-size", size, "--json")
    assert json.loads(result.stdout)["rule"] == "budget(60000)"
    assert 50_000 < (folder / "fast.safetensors").stat().st_size <= 60_000


def test_weights_choose_layers_by_name(folder: Path, run: Run) -> None:
    weights = ["--weight", "style.safetensors", r"attentions\.0\.", "0.5", "--weight", "*", "attn2", "0"]
    result = run("combine", "style.safetensors - lcm.safetensors", "-o", "c.safetensors", "--dtype", "fp32", *weights)
    assert result.exit_code == 0, result.output
    found = dict(
        zip(adapters.dense(folder / "c.safetensors"), adapters.diagonals(folder / "c.safetensors"), strict=True)
    )
    for module, diagonal in found.items():
        style = 0.5 if "attentions.0." in module else 1.0  # the first pattern that fits counts
        lcm = 0.0 if "attn2" in module else 1.0
        assert diagonal == pytest.approx([2 * style - lcm, style, -2 * lcm, -0.5 * lcm, 0], abs=1e-5), module
    assert len(found) == 12


@pytest.mark.parametrize(
    ("format", "output"), [("kohya", "c.safetensors"), ("diffusers", "c.safetensors"), ("peft", "c")]
)
def test_every_format_comes_out_the_same(folder: Path, run: Run, format: str, output: str) -> None:
    assert run("combine", EXPRESSION, "-o", output, "--format", format, "--dtype", "fp32").exit_code == 0
    assert run("combine", EXPRESSION, "-o", "reference.safetensors", "--dtype", "fp32").exit_code == 0
    compared = json.loads(run("compare", output, "reference.safetensors", "--json").stdout)
    assert compared["distance"] < 1e-6 * compared["norms"][0]


def test_an_existing_file_is_kept_unless_forced(folder: Path, run: Run, refused: Callable[..., str]) -> None:
    before = (folder / "lcm.safetensors").read_bytes()
    message = refused(6, "combine", "2*style.safetensors", "-o", "lcm.safetensors")
    assert message == "lcm.safetensors exists already: choose another name, or overwrite it with --force"
    assert (folder / "lcm.safetensors").read_bytes() == before
    assert run("combine", "2*style.safetensors", "-o", "lcm.safetensors", "--force").exit_code == 0
    assert adapters.diagonals(folder / "lcm.safetensors") == [pytest.approx([4, 2, 0, 0, 0])] * 12


def test_the_output_may_replace_its_own_input(folder: Path, run: Run) -> None:
    assert run("combine", "-1*style.safetensors", "-o", "style.safetensors", "--force").exit_code == 0
    assert adapters.diagonals(folder / "style.safetensors") == [pytest.approx([-2, -1, 0, 0, 0])] * 12
    assert sorted(path.name for path in folder.iterdir()) == ["lcm.safetensors", "style.safetensors"]


@pytest.mark.parametrize(
    "negated", ["-style.safetensors + 0*lcm.safetensors", "- style.safetensors", "-1 *style.safetensors"]
)
def test_an_expression_may_begin_with_a_minus(folder: Path, run: Run, negated: str) -> None:
    for arguments in (["combine", negated, "-o", "a.safetensors"], ["combine", "-o", "b.safetensors", negated]):
        assert run(*arguments).exit_code == 0
        assert adapters.diagonals(folder / arguments[1 + arguments.index("-o")])[0] == pytest.approx([-2, -1, 0, 0, 0])


def test_names_with_spaces_and_signs(folder: Path, run: Run) -> None:
    (folder / "style.safetensors").rename(folder / "my sd1-style.safetensors")
    result = run("combine", "'my sd1-style.safetensors' + 0.5*lcm.safetensors", "-o", "a b.safetensors")
    assert result.stdout.startswith("a b.safetensors: sd15")
    assert adapters.diagonals(folder / "a b.safetensors") == [pytest.approx([2.5, 1, 1, 0.25, 0], abs=2e-3)] * 12


def test_the_installed_script_does_the_main_job(folder: Path) -> None:
    done = script("combine", EXPRESSION, "-o", "fast.safetensors", "--rank", "4", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["rank_max"] == 4
    assert adapters.diagonals(folder / "fast.safetensors") == [pytest.approx([2.6, 0.8, 2, 0.5, 0], abs=2e-3)] * 12


def test_refusals(folder: Path, refused: Callable[..., str], misused: Callable[..., str]) -> None:
    def combine(*arguments: str) -> tuple[str, ...]:
        return ("combine", *arguments, "-o", "out.safetensors")

    assert "expected + or - with spaces" in refused(2, *combine("style +lcm"))
    assert refused(2, *combine("")).startswith("cannot read the expression '' at its end")
    assert refused(4, *combine("styel.safetensors")).startswith("no adapter 'styel.safetensors'")
    operand = combine("style.safetensors", "--weight", "lcm", "attn", "2")
    assert refused(2, *operand) == "no operand 'lcm' in the expression: it has style.safetensors"
    pattern = combine("style.safetensors", "--weight", "*", "atttn", "2")
    assert "matches 'atttn'" in refused(2, *pattern)
    assert "is not a regular expression" in refused(2, *combine("style.safetensors", "--weight", "*", "(", "2"))
    assert "did you mean sdxl?" in refused(4, *combine("style.safetensors", "--base", "sdx"))
    assert refused(4, "combine", "style.safetensors", "-o", "no/such/out.safetensors") == "no such folder: no/such"
    assert "--rank and --energy exclude each other" in misused(*combine("a", "--rank", "4", "--energy", "0.5"))
    assert "'nan' is not a finite number" in misused(*combine("a", "--weight", "*", "attn", "nan"))
    assert "0 is not in the range x>=1" in misused(*combine("a", "--rank", "0"))
    assert "1.5 is not in the range 0<x<=1" in misused(*combine("a", "--energy", "1.5"))
    assert "is not a size" in misused(*combine("a", "--max-size", "1.2.3MB"))
    assert "is not a size" in misused(*combine("a", "--max-size", "-5MB"))
    assert "is no device" in misused(*combine("a", "--device", "gpu"))
    assert "so there is no cuda:99" in misused(*combine("a", "--device", "cuda:99"))
    assert ".bin names a pickle" in misused("combine", "a", "-o", "out.bin")
    assert "without .safetensors" in misused("combine", "a", "-o", "out.safetensors", "--format", "peft")
    assert "energy is a share between 0 and 1, got nan" in refused(2, *combine("style.safetensors", "--energy", "nan"))
    assert "header alone needs" in refused(2, *combine("style.safetensors", "--max-size", "1000"))


def test_adapters_of_different_bases_are_not_mixed(folder: Path, refused: Callable[..., str]) -> None:
    sd2 = adapters.kohya_tensors()
    for key, value in sd2.items():
        if "attn2_to_k" in key or "attn2_to_v" in key:
            sd2[key] = value[:, :1].repeat(1024, 1) if key.endswith("down.weight") else value
    adapters.write(folder / "sd2.safetensors", sd2)
    message = refused(1, "combine", "style.safetensors + sd2.safetensors", "-o", "out.safetensors")
    assert message.startswith("cannot add 'style' (sd15) and 'sd2' (sd2): adapters of different bases")


def test_a_method_merges_and_says_what_the_reduction_left_out(folder: Path, run: Run) -> None:
    """2 * style - lcm is 4 - 1, 2, -2 and -0.5 on the diagonal; only the first has two signs, and + is elected."""
    method = ["--method", "ties", "-s", "density=1"]
    result = run("combine", "2*style.safetensors - lcm.safetensors", "-o", "c.safetensors", *method, "--rank", "4")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(
        r"c\.safetensors: sd15, kohya, fp16, [\d.]+ kB\n"
        r"  12 layers, rank 4 \(was 320\)\n"
        r"  merged by ties \(density 1\.0, elect sum, divide count\)\n"
        r"  fixed\(4\) leaves out 0\.\d{3}% of the norm\n"
        r"  read back and compared: ΔW differs by \d\.\de-0\d of its norm \(fp16 rounding\)\n",
        result.stdout,
    )
    assert adapters.diagonals(folder / "c.safetensors") == [pytest.approx([4, 2, -2, -0.5, 0], abs=5e-3)] * 12
    small = [*method, "--rank", "1", "--dtype", "fp32", "--json"]
    facts = json.loads(run("combine", "2*style.safetensors - lcm.safetensors", "-o", "d.safetensors", *small).stdout)
    assert facts["method"] == "ties"
    assert facts["settings"] == {"density": 1.0, "elect": "sum", "divide": "count"}
    assert facts["relative_error"] == pytest.approx(math.sqrt(8.25 / 24.25), rel=1e-3)
    assert facts["expression"].startswith("merge(style, lcm, method=ties, weights=[2.0, -1.0], density=1.0")


def test_blocks_are_weighed_before_they_are_merged(folder: Path, run: Run) -> None:
    weights = ["--weight", "lcm.safetensors", "attn2", "0"]
    method = ["--method", "ties", "-s", "density=1", "-s", "divide=none", "--rank", "4", "--dtype", "fp32"]
    result = run("combine", "style.safetensors + lcm.safetensors", "-o", "c.safetensors", *method, *weights)
    assert result.exit_code == 0, result.output
    for module, diagonal in zip(adapters.LAYERS, adapters.diagonals(folder / "c.safetensors"), strict=True):
        expected = [2, 1, 0, 0, 0] if "attn2" in module else [3, 1, 2, 0.5, 0]
        assert diagonal == pytest.approx(expected, abs=2e-3), module


def test_normalise_keeps_the_norm_of_the_first_adapter(folder: Path, run: Run) -> None:
    result = run("combine", EXPRESSION, "-o", "c.safetensors", "--normalise", "--rank", "2", "--dtype", "fp32")
    factor = math.sqrt(5 / (2.6**2 + 2**2))
    assert f"  scaled by {factor:.4g} to the norm of the first adapter" in result.stdout.splitlines()
    assert adapters.diagonals(folder / "c.safetensors") == [pytest.approx([2.6 * factor, 0, 2 * factor, 0, 0])] * 12
    whole = run("combine", EXPRESSION, "-o", "d.safetensors", "--normalise", "--json")
    assert json.loads(whole.stdout)["factor"] == pytest.approx(math.sqrt(5 / 11.65))
    assert json.loads(whole.stdout)["method"] == "linear"


def test_orthogonal_to_an_operand_and_to_another_adapter(folder: Path, run: Run) -> None:
    share = 2 / 5.25  # of lcm in style: <style, lcm> / <lcm, lcm>
    arguments = ["-o", "c.safetensors", "--orthogonal-to", "lcm.safetensors", "--dtype", "fp32"]
    result = run("combine", EXPRESSION, *arguments)
    assert result.exit_code == 0, result.output
    assert "  12 layers, rank 5" in result.stdout.splitlines()
    lcm = 1 - 0.8 * share
    expected = [1.6 + lcm, 0.8, 2 * lcm, 0.5 * lcm, 0]
    assert adapters.diagonals(folder / "c.safetensors") == [pytest.approx(expected, abs=1e-5)] * 12
    assert run("combine", "style.safetensors", *arguments, "--force").exit_code == 0
    expected = [2 - share, 1, -2 * share, -0.5 * share, 0]
    assert adapters.diagonals(folder / "c.safetensors") == [pytest.approx(expected, abs=1e-5)] * 12
    compared = json.loads(run("compare", "c.safetensors", "lcm.safetensors", "--json").stdout)
    assert abs(compared["cosine"]) < 1e-6


def test_refusals_of_methods(folder: Path, refused: Callable[..., str], misused: Callable[..., str]) -> None:
    def combine(*arguments: str) -> tuple[str, ...]:
        return ("combine", EXPRESSION, "-o", "out.safetensors", *arguments)

    known = refused(2, *combine("--method", "tie", "--rank", "4"))
    assert known.startswith("no merge method is called 'tie'; expected one of ties, ")
    unknown = refused(2, *combine("--method", "ties", "-s", "densty=0.3", "--rank", "4"))
    assert unknown == "ties has no setting 'densty'; its settings are density, elect, divide"
    wrong = refused(2, *combine("--method", "ties", "-s", "density=1.5", "--rank", "4"))
    assert wrong == "ties: density must be a number in (0, 1], got '1.5'"
    assert "not low-rank" in refused(2, *combine("--method", "ties"))
    assert "name one with --method" in misused(*combine("-s", "density=0.3"))
    assert "expected NAME=VALUE" in misused(*combine("--method", "ties", "-s", "density"))
    assert "density is given twice" in misused(*combine("--method", "ties", "-s", "density=1", "-s", "density=0.5"))
    assert refused(4, *combine("--orthogonal-to", "nothing.safetensors")).startswith("no adapter 'nothing.safetensors'")
    alone = ("combine", "lcm.safetensors", "-o", "out.safetensors", "--orthogonal-to", "lcm.safetensors")
    assert "not orthogonal to itself" in refused(2, *alone)
