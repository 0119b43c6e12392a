"""Opens a page in headless Chromium as a person would, and prints what it found as one JSON object.

It runs with the Python of .venv-browser: browser_visit.py PAGE FOLDER. FOLDER gets report-light.png,
report-dark.png and report-phone.png.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def visit(browser: Browser, address: str, name: str, folder: Path) -> dict[str, Any]:
    """What one view of the page shows and does."""
    context = browser.new_context(**VIEWS[name])
    page = context.new_page()
    trouble: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: trouble.append(message.text))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("dialog", lambda dialog: (trouble.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.screenshot(path=folder / f"report-{name}.png")
    found = {
        "width": page.evaluate("document.documentElement.scrollWidth"),
        "background": page.evaluate("getComputedStyle(document.body).backgroundColor"),
        "violations": violations(page),
        "keyboard": keyboard(page),
        "asked": [url for url in asked if url != address],
        "trouble": trouble,
    }
    context.close()
    return found


def violations(page: Page) -> list[str]:
    """What axe-core objects to, with everything opened that can be."""
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    response = Axe().run(page).response
    found = [
        f"{rule['id']}: {node['html'][:160]}" for rule in response["violations"] for node in rule["nodes"]
    ]
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = false; })")
    return found


def keyboard(page: Page) -> dict[str, Any]:
    """What the tab key reaches first, what arrow keys read out of a curve, and what the button changes."""
    page.keyboard.press("Tab")
    first = page.evaluate("document.activeElement.className")
    page.locator("#curves svg").first.focus()
    last = page.locator("#curves .readout").first.inner_text()
    page.keyboard.press("ArrowLeft")
    before = page.locator("#curves .readout").first.inner_text()
    page.keyboard.press("Home")
    home = page.locator("#curves .readout").first.inner_text()
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    return {
        "first": first,
        "read": [last, before, home],
        "theme": page.evaluate("document.documentElement.dataset.theme"),
    }


def main(page: Path, folder: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        address = page.resolve().as_uri()
        print(json.dumps({name: visit(browser, address, name, folder) for name in VIEWS}))
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
