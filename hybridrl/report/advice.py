"""Advice about a run: the rules that hold, with what was found and what to change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hybridrl.report.html import section
from hybridrl.report.rules import RULES, Change, Rule
from hybridrl.report.run_data import RunData
from hybridrl.report.text import escaped


@dataclass(frozen=True, slots=True)
class Advice:
    rule: Rule
    evidence: tuple[str, ...]
    changes: tuple[str, ...]
    """As KEY=VALUE, for the command line; empty if the run has all of them already."""


def advise(run: RunData, rules: Sequence[Rule] = RULES) -> list[Advice]:
    """What holds of a run: first what keeps it from learning, then what costs time."""
    found = [advice for rule in rules if (advice := _advice(run, rule)) is not None]
    return sorted(found, key=lambda advice: advice.rule.is_speed)


def lines(found: Sequence[Advice]) -> Iterator[tuple[str, str]]:
    """(heading, text) of each line; a line with an empty heading belongs to the heading above it."""
    if not found:
        yield "advice", "nothing: no rule holds"
    for advice in found:
        yield "advice", f"{advice.rule.name}: {' and '.join(advice.evidence)}"
        yield "", f"because {advice.rule.cause}"
        if advice.changes:
            yield "", f"try {'  or  '.join(advice.changes)}"
        yield "", f"source: {advice.rule.source}"


def short(run: RunData) -> Iterator[str]:
    """The last lines of a run: what keeps it from learning, one line each; nothing if it learns."""
    found = [advice for advice in advise(run) if not advice.rule.is_speed]
    for advice in found:
        tried = f" -> {advice.changes[0]}" if advice.changes else ""
        yield f"  advice   {advice.rule.name}: {' and '.join(advice.evidence)}{tried}"
    if found:
        yield f"           hybridrl report {run.folder} --text says why"


def shown(run: RunData) -> str:
    """The section of a page; "" if no rule holds."""
    return section(
        "advice",
        "Advice",
        *(_item(advice) for advice in advise(run)),
        about="A rule holds for what this run measured; its changes are alternatives, not a list to follow.",
    )


def _advice(run: RunData, rule: Rule) -> Advice | None:
    found = [condition.evidence(run.steps) for condition in rule.conditions]
    evidence = [clause for clause in found if clause is not None]
    if len(evidence) < len(found):
        return None
    changes = tuple(text for change in rule.changes if (text := _proposed(run, change)) is not None)
    return Advice(rule, tuple(dict.fromkeys(evidence)), changes)


def _proposed(run: RunData, change: Change) -> str | None:
    """KEY=VALUE; None: the run has that value, or its own would change in the wrong direction."""
    present = run.setting(change.key)
    if change.to is None:
        value = _number(present)
        return None if not value else f"{change.key}={_times(value, change.times)}"
    value = _number(present)
    if change.only is not None and value is not None and isinstance(change.to, int | float):
        if value >= change.to if change.only == "raise" else value <= change.to:
            return None
    if present == str(change.to) or _has_parts(run, change.key):
        return None
    return f"{change.key}={change.to:g}" if isinstance(change.to, float) else f"{change.key}={change.to}"


def _has_parts(run: RunData, key: str) -> bool:
    """Whether the run has the section that a key names."""
    return any(one.key.startswith(f"{key}.") for one in run.settings)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _times(value: float, factor: float) -> str:
    changed = value * factor
    whole = value.is_integer() and factor >= 0.5 and changed >= 1
    return str(round(changed)) if whole else f"{changed:.2g}"


def _item(advice: Advice) -> str:
    rule = advice.rule
    tried = " or ".join(f"<code>{escaped(change)}</code>" for change in advice.changes)
    return (
        f'<div class="advice"><h3>{escaped(rule.name)}</h3>'
        f"<p>{escaped(' and '.join(advice.evidence))}: {escaped(rule.cause)}.</p>"
        f"{f'<p>Try {tried}</p>' if tried else ''}<p><small>{escaped(rule.source)}</small></p></div>"
    )
