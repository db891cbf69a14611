"""The report page in a browser, opened from disk with the network off."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import brushbench
from brushbench.report.data import collect
from brushbench.report.plots import draw_plots
from brushbench.report.render import prepare_folder, write_page, write_pictures

from .reports import HOSTILE, hostile_benchmark, tiny_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

if CHROMIUM is None and os.environ.get("CI"):
    pytest.fail("Chromium is missing: apt-get install chromium. In CI the page's tests must not be passed over.", False)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    benchmark, runs = tiny_runs(root)
    report = collect(runs)
    prepare_folder(root / "page")
    write_pictures(report, benchmark, root / "page", jobs=1)
    write_page(report, root / "page")
    return root / "page"


@pytest.fixture(scope="module")
def audited_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a benchmark whose audit is committed, without pictures."""
    root = tmp_path_factory.mktemp("audited")
    metrics = "psnr@standard,ssim,boundary,clip_score@standard"
    run = brushbench.evaluate("telea", "shapes", split="inside", limit=2, out=root / "run", metrics=metrics)
    prepare_folder(root / "page")
    write_page(collect([run]), root / "page")
    return root / "page"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visit:
    """A page of a report, opened offline, that remembers what it asked for and what went wrong."""

    def __init__(self, browser: Any, folder: Path, state: str = "", **options: Any) -> None:
        self.context = browser.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.goto((folder / "index.html").as_uri() + state)

    def close(self) -> None:
        self.context.close()
        assert not self.complaints
        assert all(url.startswith(("file:", "data:")) for url in self.asked), self.asked


def test_the_committed_page_opens_with_the_pictures_of_every_method(browser: Any) -> None:
    site = Path(__file__).parents[2] / "reports" / "site"
    assert sum(file.stat().st_size for file in site.rglob("*") if file.is_file()) < 6e6
    visit = Visit(browser, site, "#view=gallery")
    row = visit.page.locator(".row").first
    row.wait_for()
    visit.page.wait_for_function("[...document.images].filter(i => i.complete && i.naturalWidth).length >= 4")
    assert {"brushnet", "powerpaint", "controlnet", "hd-painter"} <= set(re.split(r"\s+", row.inner_text()))
    visit.close()


def test_the_tabs_show_one_part_each_and_the_address_says_which(browser: Any, page_folder: Path) -> None:
    visit = Visit(browser, page_folder)
    for name in ("Gallery", "Plots", "Provenance", "Leaderboard"):
        visit.page.get_by_role("tab", name=name).click()
        visible = visit.page.locator("[role=tabpanel]:visible")
        assert visible.count() == 1
        assert visible.get_attribute("id") == f"panel-{name.lower()}"
        assert name == "Leaderboard" or f"view={name.lower()}" in visit.page.url
    visit.page.get_by_role("tab", name="Leaderboard").focus()
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.get_by_role("tab", name="Gallery").get_attribute("aria-selected") == "true"
    visit.close()


def test_a_click_on_a_heading_sorts_best_first_and_leaves_reference_lines_below(
    browser: Any, page_folder: Path
) -> None:
    visit = Visit(browser, page_folder)
    board = visit.page.locator(".board:visible")
    board.locator("th[data-metric=mse] button").click()

    def values() -> list[float]:
        return [float(c.get_attribute("data-value")) for c in board.locator("tbody.ranked td[data-metric=mse]").all()]

    assert values() == sorted(values())
    board.locator("th[data-metric=mse] button").click()
    assert values() == sorted(values(), reverse=True)
    assert "sort=mse" in visit.page.url
    last = board.locator("tbody").last
    assert "oracle" in last.inner_text()
    visit.close()


def test_columns_can_be_hidden_and_a_link_keeps_that(browser: Any, page_folder: Path) -> None:
    visit = Visit(browser, page_folder)
    visit.page.get_by_text("Columns", exact=True).click()
    visit.page.get_by_label("ssim", exact=True).uncheck()
    again = Visit(browser, page_folder, "#" + visit.page.url.partition("#")[2])
    assert again.page.locator(".board:visible th[data-metric=ssim]:visible").count() == 0
    assert again.page.locator(".board:visible th[data-metric=psnr]:visible").count() == 1
    visit.close()
    again.close()


def gallery_ids(page: Any) -> list[str]:
    return [text.partition(" · ")[0] for text in page.locator(".row .id").all_inner_texts()]


def test_the_gallery_filters_by_split_and_by_text(browser: Any, page_folder: Path) -> None:
    visit = Visit(browser, page_folder, "#view=gallery&order=manifest")
    visit.page.locator(".row").first.wait_for()
    everything = visit.page.locator("#gallery-status").inner_text()
    assert everything.startswith("8 of 8")
    visit.page.select_option("#gallery-split", "outside")
    assert all("outside" in text for text in visit.page.locator(".row .id").all_inner_texts())
    assert visit.page.locator("#gallery-status").inner_text().startswith("4 of 8")
    visit.page.fill("#gallery-search", "number 2")
    assert gallery_ids(visit.page) == ["000000002"]
    visit.close()


def test_the_most_changed_of_two_methods_stand_first(browser: Any, page_folder: Path) -> None:
    visit = Visit(browser, page_folder, "#view=gallery&gsplit=inside&metric=mse%40standard&order=difference")
    visit.page.locator(".row").first.wait_for()
    gaps = visit.page.evaluate(
        """() => { const d = window.BRUSHBENCH;
        const [a, b] = ['m0', 'm1'].map(key => d.scores[`${key}|raw|mse@standard`]);
        const rows = d.rows.map((r, i) => [r.id, r.split, b[i] - a[i]]);
        return rows.filter(r => r[1] === 'inside' && Number.isFinite(r[2])).sort((x, y) => y[2] - x[2]).map(r => r[0]);
        }"""
    )
    assert gaps
    assert gallery_ids(visit.page)[: len(gaps)] == gaps
    visit.page.select_option("#gallery-order", "changed")
    assert visit.page.locator(".mark").count() >= 1
    visit.close()


def until_drawn(page: Any) -> None:
    """Wait until the viewer's pictures are there; the page's policy forbids what `wait_for_function` does."""
    for _ in range(100):
        if page.locator("#canvas-right").evaluate("e => e.width") == 40 and not page.evaluate("document.hidden"):
            page.wait_for_timeout(300)
            return
        page.wait_for_timeout(50)
    pytest.fail("the viewer drew nothing within five seconds")


def test_slider_flicker_zoom_and_keys_of_the_viewer(browser: Any, page_folder: Path) -> None:
    visit = Visit(browser, page_folder, "#view=gallery&order=manifest")
    page = visit.page
    page.locator(".row .thumb").nth(2).click()
    page.locator("#viewer[open]").wait_for()
    until_drawn(page)
    assert "inset(0px 0px 0px 50%)" in page.locator("#canvas-right").evaluate("e => getComputedStyle(e).clipPath")
    page.locator("#viewer-slider").fill("25")
    assert "25%" in page.locator("#canvas-right").evaluate("e => getComputedStyle(e).clipPath")
    first = page.locator("#viewer-title").inner_text()
    page.locator("#viewer-close").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-title").inner_text() != first
    page.keyboard.press("f")
    assert page.locator("#stage").get_attribute("data-mode") == "flicker"
    page.locator("#canvas-right").wait_for(state="hidden", timeout=5000)
    before = page.locator("#canvas-left").bounding_box()["width"]
    page.select_option("#viewer-zoom", "8")
    assert page.locator("#canvas-left").bounding_box()["width"] == 320 != before
    link = page.url
    page.keyboard.press("Escape")
    assert not page.locator("#viewer[open]").count()
    again = Visit(browser, page_folder, "#" + link.partition("#")[2])
    again.page.locator("#viewer[open]").wait_for()
    visit.close()
    again.close()


def test_the_viewer_shows_the_pixels_of_the_run(browser: Any, page_folder: Path) -> None:
    visit = Visit(browser, page_folder, "#view=gallery&order=manifest")
    visit.page.locator(".row .thumb").nth(2).click()
    until_drawn(visit.page)
    visit.page.locator("#viewer-slider").fill("0")
    visit.page.select_option("#viewer-zoom", "1")
    shot = Image.open(io.BytesIO(visit.page.locator("#canvas-right").screenshot())).convert("RGB")
    made = np.asarray(Image.open(page_folder / "full" / "000" / "000000-m0.png"))
    seen = np.asarray(shot)
    # The slider's line covers two columns; the canvas may begin between two pixels of the screen, which costs a row.
    assert any(np.array_equal(seen[i : i + 47, 4:40], made[j : j + 47, 4:40]) for i in (0, 1) for j in (0, 1))
    visit.close()


@pytest.mark.parametrize("options", [{"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 844}}])
@pytest.mark.parametrize("view", ["leaderboard", "gallery", "plots", "audit", "provenance"])
def test_axe_finds_no_serious_fault(
    browser: Any, page_folder: Path, audited_folder: Path, view: str, options: dict[str, Any]
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    folder = audited_folder if view == "audit" else page_folder
    visit = Visit(browser, folder, f"#view={view}", bypass_csp=True, **options)
    assert visit.page.locator(f"#panel-{view}").is_visible()
    visit.page.wait_for_timeout(200)
    found = Axe().run(visit.page).response["violations"]
    visit.context.close()  # axe itself asks for the style sheet by XMLHttpRequest, which file:// refuses
    assert [v["id"] for v in found if v["impact"] in ("serious", "critical")] == []


def test_the_audit_of_the_benchmark_is_a_heat_map_that_says_what_its_colours_mean(
    browser: Any, audited_folder: Path, page_folder: Path
) -> None:
    audit = json.loads((Path(__file__).parents[2] / "reports" / "audits" / "shapes-inside.json").read_text("utf-8"))
    visit = Visit(browser, audited_folder)
    visit.page.get_by_role("tab", name="Audit").click()
    table = visit.page.locator("#panel-audit:visible table")
    assert table.count() == 1  # of the split that was run
    heads = table.locator("thead th").all_inner_texts()
    assert heads == ["damage", "psnr", "ssim", "boundary", "clip score"]  # those that the run has
    rows = {row[0]: row[1:] for row in (tr.split("\t") for tr in table.locator("tbody").inner_text().splitlines())}
    seen = set()
    for name in heads[1:]:
        for one in audit["findings"]:
            if one["metric"] != f"{name.replace(' ', '_')}@standard":
                continue
            text = rows[one["damage"]][heads.index(name) - 1]
            assert text.strip("()").split()[0] == f"{one['worse']}/{one['n']}"
            assert text.startswith("(") != one["asked"]
            assert (one["verdict"] in text) == (one["verdict"] != "detects")
            seen.add(one["verdict"])
    assert seen == {"detects", "blind", "inverted"}
    caption = table.locator("caption").inner_text()
    assert all(word in caption for word in ("Blue", "White", "Orange", "Grey", "inverted"))
    visit.close()
    without = Visit(browser, page_folder)
    assert without.page.get_by_role("tab", name="Audit").count() == 0
    without.close()


def test_a_phone_needs_no_sideways_scrolling(browser: Any, page_folder: Path) -> None:
    visit = Visit(browser, page_folder, viewport={"width": 390, "height": 844})
    for view in ("leaderboard", "gallery", "plots", "provenance"):
        visit.page.get_by_role("tab", name=view.capitalize()).click()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390
    visit.close()


def test_dark_mode_is_dark(browser: Any, page_folder: Path) -> None:
    visit = Visit(browser, page_folder, color_scheme="dark")
    colour = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", colour))) < 64
    visit.page.get_by_role("button", name="Dark or light").click()
    assert visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    visit.close()


def test_hostile_names_prompts_and_metadata_are_text(browser: Any, tmp_path: Path) -> None:
    benchmark, runs = hostile_benchmark(tmp_path)
    report = collect(runs)
    prepare_folder(tmp_path / "page")
    write_pictures(report, benchmark, tmp_path / "page", jobs=1)
    page = write_page(report, tmp_path / "page").read_text("utf-8")
    assert "<script>alert" not in page
    assert page.count("<script") == 1
    visit = Visit(browser, tmp_path / "page", "#view=gallery&order=manifest")
    visit.page.locator(".row").first.wait_for()
    assert visit.page.locator(".row script, .row img[src='x']").count() == 0
    prompts = visit.page.evaluate("window.BRUSHBENCH.rows.map(r => r.prompt)")
    assert set(prompts) <= set(HOSTILE)
    first = visit.page.locator(".row .prompt").first
    assert first.evaluate("e => e.children.length") == 0
    visit.close()


def test_a_run_without_its_pictures_still_opens(browser: Any, tmp_path: Path) -> None:
    _, runs = tiny_runs(tmp_path)
    for run in runs:
        shutil.rmtree(run.path / "pictures")
    report = collect([brushbench.Run.open(run.path) for run in runs])
    prepare_folder(tmp_path / "page")
    write_page(report, tmp_path / "page")
    visit = Visit(browser, tmp_path / "page", "#view=gallery")
    visit.page.locator(".row").first.wait_for()
    assert "not in this report" in visit.page.locator("#gallery-status").inner_text()
    visit.close()


def test_a_short_gallery_says_so_and_tables_and_plots_keep_every_sample(tmp_path: Path) -> None:
    benchmark, runs = tiny_runs(tmp_path)
    whole, short = collect(runs), collect(runs, per_split=1)
    splits = {row.split for row in whole.gallery.rows}
    assert len(whole.gallery.rows) > len(short.gallery.rows) == len(splits)
    assert short.tables == whole.tables
    assert [plot.svg for plot in draw_plots(short)] == [plot.svg for plot in draw_plots(whole)]
    prepare_folder(tmp_path / "page")
    write_pictures(short, benchmark, tmp_path / "page", jobs=1)
    page = write_page(short, tmp_path / "page")
    assert "The gallery shows the first 1 samples of each split" in page.read_text("utf-8")
    assert len(list(tmp_path.glob("page/thumbs/*/*-ref.webp"))) == len(splits)
    for name, column in short.gallery.scores.items():
        kept = [whole.gallery.rows.index(row) for row in short.gallery.rows]
        assert column == [whole.gallery.scores[name][number] for number in kept]


def test_thumbnails_are_lossless_unless_a_quality_is_asked_for(tmp_path: Path) -> None:
    from PIL import Image

    benchmark, runs = tiny_runs(tmp_path)
    sizes = []
    for quality in (None, 50):
        report = collect(runs, per_split=1)
        out = tmp_path / f"page-{quality}"
        prepare_folder(out)
        write_pictures(report, benchmark, out, jobs=1, originals=False, quality=quality)
        row = report.gallery.rows[0]
        sample = next(sample for sample in benchmark if (sample.id, sample.split) == (row.sample, row.split))
        with Image.open(out / "thumbs/000/000000-ref.webp") as thumbnail:
            assert np.array_equal(np.asarray(thumbnail), sample.image) == (quality is None)
        sizes.append(sum(file.stat().st_size for file in out.glob("thumbs/*/*.webp")))
    assert sizes[1] < sizes[0]
