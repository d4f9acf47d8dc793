"""Reports to show, with real pictures on the disk, and headless Chromium to look at their pages."""

from __future__ import annotations

import colorsys
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

from lorahub.validate.cells import Acceleration, Cell, Generation, Picture, Plan, Score, Sweep
from lorahub.validate.finding import Finding, Severity
from lorahub.validate.planning import figure
from lorahub.validate.report import Report

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"
PLAN = Plan(
    prompts=("a red circle on sand", f"a blue square {HOSTILE}"),
    seeds=(0, 1, 2, 3),
    steps=(1, 2, 4, 8),
    samplers=("dpmsolver++", "ddim"),
    acceleration=Acceleration("LCMScheduler"),
    sweep=Sweep("lcm", (0.6, 0.8, 1.0, 1.2)),
)
FINDINGS = (
    Finding("finite", Severity.PASS, "every number is finite"),
    Finding("rank", Severity.PASS, "12 of 12 layers use their rank"),
    Finding("alpha", Severity.FAIL, "the scale is 8 times too strong: alpha was lost", "down_blocks.0." * 9 + "to_q"),
    Finding("accelerators", Severity.WARNING, f"a name that is {HOSTILE}", of=HOSTILE),
    Finding("provenance", Severity.INCONCLUSIVE, "the parents are not at hand"),
    Finding("schedulers", Severity.WARNING, "DDIM is asked for, but LCM needs LCMScheduler"),
)


def generation(folder: Path, plan: Plan = PLAN, side: int = 32) -> Generation:
    """The figure of a plan: every picture is one colour, which its cell, prompt and seed decide."""
    coefficients = {"style": 0.8, "lcm": 1.0}
    drawn = figure(plan, coefficients, ["lcm"], 7.5)
    pictures, scores = [], []
    for index, cell in enumerate(drawn.cells):
        for prompt in plan.prompts:
            for seed in plan.seeds:
                path = folder / f"{index}-{plan.prompts.index(prompt)}-{seed}.png"
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.new("RGB", (side, side), colour(index, plan.prompts.index(prompt), seed)).save(path)
                pictures.append(Picture(cell, prompt, seed, path, 0.02 * cell.steps))
        scores += _scores(cell)
    return Generation(
        plan, "a/base", "StableDiffusionPipeline", tuple(pictures), tuple(scores), drawn.reference,
        drawn.base_reference, {"device": "cpu"}, None, {"base": 0.02},
    )  # fmt: skip


def colour(cell: int, prompt: int, seed: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb((cell * 0.083) % 1, 0.3 + 0.15 * seed, 0.9 - 0.3 * prompt)
    return int(red * 255), int(green * 255), int(blue * 255)


def _scores(cell: Cell) -> list[Score]:
    value = 12 + 3 * len(cell.row) / (1 + abs(8 - cell.steps)) + dict(cell.coefficients).get("lcm", 0)
    return [
        Score("psnr", cell, value, 1.0, value - 1.5, value + 1.5),
        Score("ssim", cell, value / 30, 0.1, value / 30 - 0.05, value / 30 + 0.05),
        Score("clip", cell, None, reason="no feature model was given"),
    ]


def report(folder: Path, *, findings: tuple[Finding, ...] = FINDINGS, pictures: bool = True) -> Report:
    return Report(
        subject="0.8*style + 1.0*lcm",
        expression="0.8*style + 1*lcm",
        base="sd15",
        findings=findings,
        numbers={"layer_count": 2, "norm": 7.31139, "layers": {HOSTILE: {"stored": 4, "rms": 0.00213}}},
        generation=generation(folder) if pictures else None,
        command="lorahub validate '0.8*style + 1.0*lcm' --base-model a/base -o report.html",
        versions={"torch": "2.13.0", "lorahub-toolkit": "0.1.0"},
        files={"style": "/models/style.safetensors", "lcm": "/models/" + "x" * 120 + ".safetensors"},
    )


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless. Where there is none the test is skipped, unless CI_CHROMIUM=1 says there must be."""
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI_CHROMIUM") == "1":
            pytest.fail("CI_CHROMIUM=1 but there is no chromium on the PATH")
        pytest.skip("no chromium on the PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def shown(browser: Browser, path: Path, **options: object) -> Iterator[Page]:
    """The page in a tab of its own. What it logs, throws or asks the network for is an error."""
    context: BrowserContext = browser.new_context(**options)  # type: ignore[arg-type]
    complaints: list[str] = []

    def refuse(route: Route) -> None:
        complaints.append(f"asked for {route.request.url}")
        route.abort()

    context.route(lambda url: not url.startswith(("file:", "data:")), refuse)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"threw {error}"))
    page.on("request", lambda request: complaints.append(request.url) if _leaves(request.url, path) else None)
    page.goto(path.as_uri())
    try:
        yield page
        assert complaints == []
    finally:
        context.close()


def _leaves(url: str, path: Path) -> bool:
    return not url.startswith("data:") and url.partition("#")[0] != path.as_uri()
