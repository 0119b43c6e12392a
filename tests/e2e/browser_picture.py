"""Takes a picture of a page in headless Chromium, as large as its contents, and prints its text.

It runs with the Python of .venv-browser: browser_picture.py PAGE PICTURE.
"""

import shutil
import sys
from pathlib import Path

from browser_visit import FLAGS
from playwright.sync_api import sync_playwright


def main(page_file: Path, picture: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        page = browser.new_page(viewport={"width": 1000, "height": 400})
        page.goto(page_file.resolve().as_uri())
        page.screenshot(path=picture, full_page=True)
        print(page.locator("pre").inner_text())
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
