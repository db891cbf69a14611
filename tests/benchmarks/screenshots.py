"""Make the README's pictures of the report page and of a contact sheet from the runs of `make eval`.

    make eval && python -m tests.benchmarks.screenshots runs/shapes

Needs Chromium and the development packages.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from brushbench.cli import app

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "reports" / "pictures"


def run(*args: str) -> None:
    """Run a command of ours in this process."""
    try:
        app(list(args))
    except SystemExit as stop:
        if stop.code:
            raise


def main() -> int:
    """Write ``page.png`` and ``sheet.png``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the runs")
    runs = str(parser.parse_args().runs)
    OUT.mkdir(parents=True, exist_ok=True)
    run("sheet", runs, "-o", str(OUT / "sheet.png"), "--split", "inside", "--limit", "4", "--size", "96")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("No Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        run("report", runs, "-o", f"{scratch}/page")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 640})
        page.goto(f"{Path(scratch, 'page', 'index.html').as_uri()}#view=gallery&order=changed&gsplit=inside")
        page.locator(".row .thumb img").first.wait_for()
        page.wait_for_timeout(500)
        page.screenshot(path=OUT / "page.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
