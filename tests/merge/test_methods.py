"""The table and the check of settings, and the command that lists it, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lorahub.errors import UsageError
from lorahub.merge import METHODS, check_settings


def test_defaults_are_within_their_own_ranges() -> None:
    for name, method in METHODS.items():
        defaults = {key: setting.default for key, setting in method.settings.items()}
        assert check_settings(name, defaults) == check_settings(name, {}) == defaults
        assert method.name == name
        assert method.paper
        assert method.summary.endswith(".")


def test_text_and_numbers_are_read() -> None:
    assert check_settings("dare_ties", {"density": "0.3", "seed": "7"}) == {
        "density": 0.3, "seed": 7, "elect": "sum", "divide": "count",
    }  # fmt: skip
    assert check_settings("ties", {"density": 1})["density"] == 1.0
    assert check_settings("della", {"density": 1})["epsilon"] == 0.1


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("tise", {}, "no merge method is called 'tise'; expected one of ties,"),
        ("ties", {"densty": 1}, "ties has no setting 'densty'; its settings are density, elect, divide"),
        ("slerp", {"t": 1}, "slerp has no setting 't'; it has none"),
        ("ties", {"density": "0"}, r"ties: density must be a number in \(0, 1\], got '0'"),
        ("ties", {"density": "nan"}, "got 'nan'"),
        ("ties", {"density": True}, "got True"),
        ("ties", {"density": "half"}, "got 'half'"),
        ("dare_ties", {"seed": 1.5}, "a whole number"),
        ("dare_ties", {"seed": "-1"}, "a whole number"),
        ("ties", {"elect": "mass"}, "elect must be sum or count, got 'mass'"),
        ("della", {"density": 0.95}, "give a smaller epsilon"),
        ("della", {"density": 0.1, "epsilon": 0.1}, "give a smaller epsilon"),
    ],
)
def test_what_is_wrong_is_said(method: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_settings(method, given)


def test_the_command_lists_without_torch() -> None:
    code = "import sys; from lorahub.cli import main; main(['methods'], standalone_mode=False); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*METHODS]


def test_the_command_shows_one_and_speaks_json() -> None:
    from click.testing import CliRunner

    from lorahub.cli import main

    shown = CliRunner().invoke(main, ["methods", "dare_ties"]).stdout
    assert "arXiv 2311.03099" in shown
    assert "-s density=0.5" in shown
    listed = json.loads(CliRunner().invoke(main, ["methods", "--json"]).stdout)["methods"]
    assert [row["name"] for row in listed] == [*METHODS]
    assert listed[0]["settings"]["density"]["default"] == 0.5
    wrong = CliRunner().invoke(main, ["methods", "tise"])
    assert wrong.exit_code == 2
    assert "expected one of" in wrong.stderr
