"""What mkdocs.yml needs of mkdocs beyond its options: patterns in the navigation, and links to the source.

A person reads a page on a code host, where a link to ../hybridrl/columns.py opens the file, or in the site,
which holds the pages only. The site shows such a link as its text.
"""

import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Nav = list[dict[str, list[str]]]

_LINK_OUT = re.compile(r"(?<!!)\[([^\]]+)\]\(\.\./[^)]*\)")


def on_config(config: Any) -> Any:
    pages = sorted(path.name for path in Path(config["docs_dir"]).glob("*.md"))
    config["nav"] = expand(config["nav"], pages)
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _LINK_OUT.sub(r"\1", markdown)


def expand(nav: Nav, pages: Sequence[str]) -> Nav:
    """The navigation with pages in place of patterns.

    A page goes to the first entry that is its name, or else to the longest pattern that matches it. An entry
    without a pattern stays even if no page has its name, so that mkdocs refuses it. Groups without pages go.
    """
    found: Nav = []
    for group in nav:
        ((title, entries),) = group.items()
        if inside := list(_inside(entries, nav, pages)):
            found.append({title: inside})
    return found


def _inside(entries: Sequence[str], nav: Nav, pages: Sequence[str]) -> Iterator[str]:
    for entry in entries:
        if "*" in entry:
            yield from (page for page in pages if _entry_of(page, nav) == entry)
        else:
            yield entry


def _entry_of(page: str, nav: Nav) -> str | None:
    entries = [entry for group in nav for inside in group.values() for entry in inside]
    matching = [entry for entry in entries if fnmatch(page, entry)]
    return page if page in matching else max(matching, key=len, default=None)
