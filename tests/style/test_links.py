"""Links of the documentation lead somewhere; every page has a place in the site; the picture is current.

`make docs` builds the site and checks the same with mkdocs. These tests need no mkdocs.
"""

import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from documented import PAGES, ROOT

MARKDOWN = sorted({*PAGES, *ROOT.glob("*.md")})
SITE = sorted((ROOT / "docs").glob("*.md"))
HOOKS = runpy.run_path(str(ROOT / "docs/theme/hooks.py"))

_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
_INDENTED_CODE = re.compile(r"^ {4}.*$", re.MULTILINE)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)")
_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
_ELSEWHERE = re.compile(r"(https?|mailto):")

MADE_UP = {
    "README.md": """\
# Speed
## On GPUs: how
[a](#speed) [b](docs/a.md#one) [c](docs/none.md) [d](docs/a.md#two)
`[e](none)` [h](https://example.org) [i](#on-gpus-how) ![j](k.svg)

    [f](none)

```
[g](none)
```
""",
    "docs/a.md": "# One\n```\n# Two\n```\n",
}
"""Files of a project; three links of its README are broken."""


def broken(page: Path) -> list[str]:
    """Links of a page to a file or an anchor that is not there."""
    found = _LINK.findall(_INDENTED_CODE.sub("", _CODE.sub("", page.read_text("utf-8"))))
    return [target for target in found if not _ELSEWHERE.match(target) and not leads(page, target)]


def leads(page: Path, target: str) -> bool:
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not anchor or (file.suffix == ".md" and anchor in anchors(file)))


def anchors(page: Path) -> set[str]:
    """Anchors that a code host and mkdocs both give to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = [re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading) for heading in _HEADING.findall(text)]
    hosts = [re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.lower())) for heading in headings]
    return {anchor for anchor in hosts if anchor == re.sub(r"-+", "-", anchor).strip("-")}


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name, text in MADE_UP.items():
        (tmp_path / name).write_text(text)
    assert broken(tmp_path / "README.md") == ["docs/none.md", "docs/a.md#two", "k.svg"]


@pytest.mark.parametrize("page", MARKDOWN, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/index.md"])
def test_a_first_page_links_what_it_names(name: str) -> None:
    """A page of documentation that it names is a link, not a piece of code."""
    assert re.findall(r"(?<!\[)`(?:docs/)?\w+\.md`", (ROOT / name).read_text("utf-8")) == []


def expanded(pages: list[str]) -> list[dict[str, list[str]]]:
    expand: Callable[..., list[dict[str, list[str]]]] = HOOKS["expand"]
    return expand(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"], pages)


def entries(nav: list[dict[str, list[str]]]) -> Iterator[str]:
    for group in nav:
        for inside in group.values():
            yield from inside


def test_every_page_is_in_the_navigation_once() -> None:
    assert sorted(entries(expanded([page.name for page in SITE]))) == [page.name for page in SITE]


def test_a_new_page_has_a_place() -> None:
    new = ["extend_moon.md", "coming_from_mars.md", "walkthrough_x.md", "moon.md"]
    titles = {
        page: title
        for group in expanded([*(page.name for page in SITE), *new])
        for title, inside in group.items()
        for page in inside
    }
    assert [titles[page] for page in new] == ["Extend", "Coming from", "Guides", "Guides"]


def test_a_link_to_the_source_is_its_text_in_the_site() -> None:
    text = "see [the table](../hybridrl/columns.py), [plan](plan.md), ![x](../a.png) and [`b`](../b.md#c)"
    shown = "see the table, [plan](plan.md), ![x](../a.png) and `b`"
    assert HOOKS["on_page_markdown"](text, page=None) == shown


def test_nothing_is_fetched_while_a_page_is_read() -> None:
    """The theme asks for no fonts, and neither the configuration nor a picture names a server."""
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert yaml.safe_load(config)["theme"]["font"] is False
    assert "://" not in config
    drawn = [path.read_text("utf-8") for path in (ROOT / "docs/pictures").glob("*.svg")]
    assert not [text for text in drawn if re.search(r"(href|src|url)\W+https?:", text) or "@import" in text]


def test_the_picture_of_the_system_is_what_its_script_draws() -> None:
    draw: Callable[[], str] = runpy.run_path(str(ROOT / "docs/pictures/system.py"))["draw"]
    assert (ROOT / "docs/pictures/system.svg").read_text("utf-8") == draw()
