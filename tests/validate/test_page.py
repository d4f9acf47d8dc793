"""The page of a report: what is in it, that nothing gets out of it, and how it behaves in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from lorahub.errors import NotFoundError
from lorahub.validate.finding import Finding, Severity
from lorahub.validate.page import render, write_page
from lorahub.validate.page_figure import draw_figure
from tests.validate import pages

PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}

pytestmark = pytest.mark.xdist_group("chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with pages.chromium() as found:
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return write_page(pages.report(folder / "pictures"), folder / "report.html")


def visible(page: Page, selector: str) -> list[str]:
    found: list[str] = page.locator(selector).evaluate_all(
        "found => found.filter((each) => each.checkVisibility()).map((each) => each.innerText)"
    )
    return found


def shown_pictures(page: Page, strip: str) -> list[str]:
    found: list[str] = page.locator("section.strip", has_text=strip).first.evaluate(
        "strip => [...strip.querySelectorAll('img')].filter((each) => each.checkVisibility()).map((each) => each.src)"
    )
    return found


def test_the_same_report_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again = write_page(pages.report(path.parent / "pictures"), tmp_path / "again.html")
    assert again.read_bytes() == path.read_bytes()
    write_page(pages.report(path.parent, pictures=False), again)
    assert again.read_bytes() != path.read_bytes(), "a page that is there is replaced"
    assert [*tmp_path.iterdir()] == [again]


def test_hostile_text_stays_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    assert text.count("</script>") == 1
    assert "<img src=x" not in text
    assert "&lt;script&gt;document.title" in text


def test_a_picture_that_is_gone_is_an_error_and_writes_nothing(tmp_path: Path) -> None:
    report = pages.report(tmp_path / "pictures")
    (tmp_path / "pictures" / "0-0-0.png").unlink()
    with pytest.raises(NotFoundError, match=r"0-0-0\.png: this picture is gone"):
        write_page(report, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_large_pictures_are_reduced_and_small_ones_kept(tmp_path: Path) -> None:
    plan = pages.Plan(("a hill",), seeds=(7,), steps=(4,), samplers=("ddim",))
    large = draw_figure(pages.generation(tmp_path / "large", plan, side=600))
    small = draw_figure(pages.generation(tmp_path / "small", plan, side=64))
    shots = [figure.strips[0].squares[0].shots[0][0] for figure in (large, small)]
    assert [(shot.width, shot.source.partition(";")[0]) for shot in shots] == [
        (448, "data:image/webp"),
        (64, "data:image/png"),
    ]
    assert "reduced to 448 pixels" in large.about
    assert "reduced" not in small.about


@pytest.mark.parametrize("severity", list(Severity))
def test_the_verdict_is_a_word_and_a_mark(severity: Severity, tmp_path: Path) -> None:
    text = render(pages.report(tmp_path, findings=(Finding("x", severity, "y"),), pictures=False))
    words = {"pass": "✓ Pass", "warning": "⚠ Pass with warnings", "inconclusive": "? Inconclusive", "fail": "✗ Fail"}
    assert f"<strong>{words[severity]}</strong>" in text
    assert "<section" not in text, "there are no pictures"


def test_verdict_command_and_versions_are_seen(browser: Browser, path: Path) -> None:
    with pages.shown(browser, path) as page:
        assert page.title() == "Fail: 0.8*style + 1.0*lcm"
        assert page.locator(".verdict strong").inner_text() == "✗ Fail"
        assert "lorahub validate '0.8*style + 1.0*lcm' --base-model a/base -o report.html" in visible(page, "pre code")
        assert "lorahub-toolkit 0.1.0, torch 2.13.0" in page.inner_text("body")
        assert page.locator(".plots svg").count() == 4
        heads = ["Findings", "Pictures", "Scores over steps", "Scores over λ of lcm", "Numbers", "Made by"]
        assert visible(page, "h2") == heads


def test_findings_are_filtered_by_severity_and_passes_collapsed(browser: Browser, path: Path) -> None:
    with pages.shown(browser, path) as page:
        first = [text.split()[1] for text in visible(page, "tr[data-severity]")]
        assert first == ["fail", "inconclusive", "warning", "warning"], "the worst first, passes folded away"
        page.get_by_label("⚠ warning").press("Space")
        assert [text.split()[1] for text in visible(page, "tr[data-severity]")] == ["fail", "inconclusive"]
        assert visible(page, "#shown") == ["2 of 4 shown"]
        page.get_by_label("⚠ warning").check()
        page.locator("#passes summary").press("Enter")
        assert len(visible(page, "tr[data-severity]")) == 6


def test_sliders_move_by_keyboard_and_change_the_pictures(browser: Browser, path: Path) -> None:
    with pages.shown(browser, path) as page:
        steps, weight = (page.get_by_role("slider", name=name) for name in ("Steps", "λ of lcm"))
        said = page.locator("#pick-steps ~ output")
        assert (said.inner_text(), said.get_attribute("aria-live")) == ("4", "polite")
        before = shown_pictures(page, "Combination")
        reference = shown_pictures(page, "25 steps")
        assert len(before) == 4, "one for each seed"
        steps.focus()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("ArrowRight")
        assert (said.inner_text(), steps.get_attribute("aria-valuetext")) == ("8", "8")
        after = shown_pictures(page, "Combination")
        assert len(after) == 4
        assert not set(after) & set(before)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "pick-lambda"
        page.keyboard.press("Home")
        assert weight.get_attribute("aria-valuetext") == "0.6"
        assert not set(shown_pictures(page, "Combination")) & set(after)
        assert "8 steps, guidance 1, 0.8*style, 0.6*lcm" in page.locator("section.strip").first.inner_text()
        assert shown_pictures(page, "25 steps") == reference, "the reference stays in sight"
        page.get_by_label("Prompt").select_option("1")
        assert not set(shown_pictures(page, "25 steps")) & set(reference)


def test_a_phone_needs_no_scrolling_sideways(browser: Browser, path: Path) -> None:
    with pages.shown(browser, path, **PHONE) as page:
        for details in page.locator("details").all():
            details.locator("summary").tap()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        wide = """[...document.querySelectorAll('body *')].filter((each) =>
            each.getBoundingClientRect().right > 360.5 && !each.closest('.scroll')).map((each) => each.outerHTML)"""
        assert page.evaluate(wide) == []


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)` (WCAG 2.2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


COLOURS = """() => [...document.querySelectorAll('body *')].filter((each) =>
    [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) && each.checkVisibility()
).map((each) => {
  let behind = each;
  while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
  const style = getComputedStyle(each);
  return [each instanceof SVGElement ? style.fill : style.color, getComputedStyle(behind).backgroundColor, each.outerHTML];
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: Browser, path: Path, scheme: str) -> None:
    with pages.shown(browser, path, color_scheme=scheme) as page:
        background = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert background > 0.9 if scheme == "light" else background < 0.05
        found = page.evaluate(COLOURS)
        assert len(found) > 50
        for front, back, element in found:
            high, low = sorted((luminance(front), luminance(back)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, f"{front} on {back}: {element}"


def test_it_prints_and_reads_without_scripts(browser: Browser, path: Path) -> None:
    with pages.shown(browser, path) as page:
        assert page.pdf().startswith(b"%PDF")
    with pages.shown(browser, path, java_script_enabled=False) as page:
        assert len(visible(page, "img")) == page.locator("img").count() > 200, "without scripts all pictures are there"
