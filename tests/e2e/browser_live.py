"""Opens the live report of a run in headless Chromium, lets the run go on, and prints what became of it.

It runs with the Python of .venv-browser: browser_live.py ADDRESS METRICS LINE. LINE is appended to METRICS.
"""

import json
import shutil
import sys
import time
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from browser_visit import FLAGS
from playwright.sync_api import sync_playwright


def main(address: str, metrics: Path, line: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1200, "height": 600})
        trouble: list[str] = []
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.goto(address)
        before = page.locator("#overview").inner_text()
        page.evaluate("window.mark = 7; document.querySelector('#metrics details').open = true")
        page.evaluate("window.scrollTo(0, 300)")
        with metrics.open("a") as file:
            file.write(line + "\n")
        deadline = time.monotonic() + 60
        while page.locator("#overview").inner_text() == before and time.monotonic() < deadline:
            page.wait_for_timeout(100)
        page.locator("#curves svg").first.focus()
        found = {
            "after": page.locator("#overview").inner_text(),
            "mark": page.evaluate("window.mark"),
            "open": page.evaluate("document.querySelector('#metrics details').open"),
            "scrolled": page.evaluate("window.scrollY"),
            "readout": page.locator("#curves .readout").first.inner_text(),
            "state": page.locator("#live").inner_text(),
            "violations": [rule["id"] for rule in Axe().run(page).response["violations"]],
            "trouble": trouble,
        }
        print(json.dumps(found))
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
