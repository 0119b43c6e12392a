"""Puts a report together: one HTML page that needs nothing else, no network and no script to be read."""

from importlib import resources
from pathlib import Path

from hybridrl.config.files import atomic_write
from hybridrl.report import advice, sections
from hybridrl.report.planned import plan_against_actual
from hybridrl.report.rollouts_view import rollouts
from hybridrl.report.run_data import RunData
from hybridrl.report.text import escaped

REPORT_FILE = "report.html"

_SECTIONS = (
    ("Overview", sections.overview),
    ("Advice", advice.shown),
    ("Curves", sections.curves),
    ("Phases", sections.phases),
    ("Engine time", sections.engine_time),
    ("Weight swap", sections.swap),
    ("Rollouts", rollouts),
    ("Plan against actual", plan_against_actual),
    ("Config", sections.config),
    ("All metrics", sections.all_metrics),
)

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The page may load nothing, from nowhere."""


def write(run: RunData, to: Path | None = None) -> Path:
    """Write the report of a run; returns the path of the page.

    Args:
        to: the file; None: report.html in the run folder.
    """
    path = run.folder / REPORT_FILE if to is None else to
    atomic_write(path, render(run))
    return path


def render(run: RunData, *, live: str | None = None) -> str:
    """The whole page.

    Args:
        live: version of a page that renews itself from the server that it comes from; None: it does not.
    """
    made = [(title, make(run)) for title, make in _SECTIONS]
    links = "".join(f'<li><a href="#{_name(body)}">{title}</a></li>' for title, body in made if body)
    return _page(sections.title_of(run), links, "".join(body for _, body in made), live)


def render_waiting(name: str, live: str) -> str:
    """The page of a run that has taken no step yet; arguments as for render()."""
    return _page(name, "", "<p>The run has taken no step yet.</p>", live)


def _page(title: str, links: str, body: str, live: str | None) -> str:
    title = escaped(title)
    policy = _POLICY if live is None else f"{_POLICY}; connect-src 'self'"
    of_body = "" if live is None else f' data-version="{escaped(live)}"'
    state = "" if live is None else '<span id="live" role="status">live</span>'
    scripts = _part("page.js") + ("" if live is None else _part("live.js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title} · hybridrl</title>'
        f"<style>{_part('page.css')}</style></head><body{of_body}>"
        '<a class="skip" href="#main">Skip to the report</a>'
        f'<header><h1>{title}</h1>{state}<button id="theme" type="button">Dark or light</button></header>'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav><main id="main">{body}</main>'
        f"<script>{scripts}</script></body></html>\n"
    )


def _name(body: str) -> str:
    """The id of a section, which is its first attribute."""
    return body.split('"', 2)[1]


def _part(name: str) -> str:
    return resources.files("hybridrl.report").joinpath("page", name).read_text("utf-8")
