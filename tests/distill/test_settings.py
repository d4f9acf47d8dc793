"""Settings from TOML and overrides: every wrong value is an error of one line that names its key."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lorahub.distill.settings import Settings, table
from lorahub.errors import FileFormatError, NotFoundError, UsageError


def test_a_file_with_overrides(tmp_path: Path) -> None:
    config = tmp_path / "lcm.toml"
    config.write_text('rank = 8\nlearning_rate = 1\nsample_steps = [1, 4]\n[data]\nfolder = "a"\n')
    found = table(config, ["rank=16", "output=/tmp/lcm.safetensors", "data.folder=b", "data.size=3", "force=true"])
    assert found.pop("data") == {"folder": "b", "size": 3}
    settings = Settings.of(found)
    assert (settings.rank, settings.learning_rate, settings.sample_steps) == (16, 1.0, (1, 4))
    assert isinstance(settings.learning_rate, float)
    assert (settings.output, settings.force) == ("/tmp/lcm.safetensors", True)
    assert settings.run_folder == Path("/tmp/lcm-run")
    assert Settings().run_folder is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mode": "lmc"}, "mode: expected one of lora, full, lcf, cd, guided, tcd, got 'lmc'"),
        ({"rank": 0}, "rank: expected a whole number from 1 to 4096, got 0"),
        ({"rank": 1.5}, "rank: expected a whole number, got 1.5"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a number from 0 to 10, got nan"),
        ({"output": 3}, "output: expected text, got 3"),
        ({"force": 1}, "force: expected true or false, got 1"),
        ({"targets": "to_q"}, "targets: expected a list, got 'to_q'"),
        ({"targets": [1]}, "targets: expected text, got 1"),
        ({"targets": []}, "targets: expected at least one module, such as to_q"),
        ({"sample_steps": [0]}, "sample_steps: expected a whole number from 1 to 1000, got 0"),
        ({"w_min": 9.0, "w_max": 2.0}, "w_min (9) is above w_max (2)"),
        ({"sample_every": 5}, "sample_every: there is nothing to draw; give sample_prompts"),
        ({"name": "lcm"}, "name: only a file can be registered; give an output"),
        ({"rnak": 8}, "rnak: no such setting; did you mean rank?"),
    ],
)
def test_wrong_values(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Settings.of(given)
    assert str(error.value) == message


def test_what_a_lora_cannot_hold() -> None:
    with pytest.raises(UsageError, match=r"^train: guided"):
        Settings(mode="guided", train="adapter")
    with pytest.raises(UsageError, match=r"^embed_guidance: "):
        Settings(embed_guidance=True)
    assert Settings(mode="full", embed_guidance=True).whole
    assert Settings(mode="lcf", train="model").whole
    assert not Settings(mode="full", train="adapter").whole


def test_files_and_overrides_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file"):
        table(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("rank 8")
    with pytest.raises(FileFormatError, match=r"bad\.toml is no TOML"):
        table(tmp_path / "bad.toml")
    with pytest.raises(UsageError, match="expected key=value, got 'rank'"):
        table(None, ["rank"])
    with pytest.raises(UsageError, match=r"rank\.x: rank is no table"):
        table(None, ["rank=8", "rank.x=1"])


def test_settings_and_plans_need_no_torch() -> None:
    code = "import sys, lorahub.distill, lorahub.distill.plan, lorahub.distill.running; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr
