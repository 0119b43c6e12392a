"""The section of rollouts: trajectories token by token, coloured by advantage or by disagreement."""

import re
from collections.abc import Sequence
from typing import Any

from hybridrl.observe.rollouts import READ, TRAINED
from hybridrl.report.html import facts, section
from hybridrl.report.run_data import RunData
from hybridrl.report.series import number
from hybridrl.report.text import escaped

_MOST_STEPS = 4
"""Steps whose rollouts are shown: the first, and the last ones."""

_KINDS = {0: "prompt", TRAINED: "trained", READ: "read"}
_PICTURE = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/]+=*")
_LEVELS = 4
"""Depths of a colour, on each side of 0."""


def rollouts(run: RunData) -> str:
    found = run.rollouts(_MOST_STEPS)
    about = (
        "Blue tokens have a positive advantage, so the update makes them likelier, and red ones a negative "
        "one. In the other view the trainer finds blue tokens likelier than the engine did. Grey is the "
        "prompt; tokens above a dotted line were read, from a tool or an environment."
    )
    shown = "".join(_rollout(one) for one in reversed(found))
    return section("rollouts", "Rollouts", _chooser() if found else "", shown, about=about)


_VIEWS = {"a": "advantage", "d": "log-probability difference", "n": "none"}


def _chooser() -> str:
    choices = "".join(_choice(value, text) for value, text in _VIEWS.items())
    return f'<fieldset class="chooser"><legend>Colour of the tokens</legend>{choices}</fieldset>'


def _choice(value: str, text: str) -> str:
    checked = " checked" if value == "a" else ""
    return f'<label><input type="radio" name="colour" value="{value}"{checked}> {text}</label>'


def _rollout(one: dict[str, Any]) -> str:
    tokens: Sequence[Sequence[Any]] = one["tokens"]
    title = f"step {one['step']}, {' and '.join(one['why']) or 'kept'}: reward {one['reward']:g}"
    return (
        f'<article class="rollout"><h3>{escaped(title)}</h3>{facts(_facts(one))}{_pictures(one)}'
        f'<div class="tokens" tabindex="0" role="region" aria-label="tokens of {escaped(title)}">'
        f"{_turns(tokens, one['left_out_after'], _left_out(one))}</div></article>"
    )


def _pictures(one: dict[str, Any]) -> str:
    """The small copies of the prompt's pictures; what is no picture is left out."""
    found = [uri for uri in one.get("pictures", ()) if _PICTURE.fullmatch(uri)]
    shown = "".join(
        f'<img src="{uri}" alt="picture {i} of {len(found)} of the prompt" loading="lazy">'
        for i, uri in enumerate(found, 1)
    )
    return f'<div class="pictures">{shown}</div>' if shown else ""


def _facts(one: dict[str, Any]) -> list[tuple[str, str]]:
    gaps = [abs(gap) for _, _, _, gap in one["tokens"] if gap is not None]
    advantage = one["advantage"]
    pairs = [
        ("prompt", one["uid"]),
        ("gold", one["gold"]),
        ("advantage", None if advantage is None else f"{advantage:+.3g}"),
        ("ended", one["finish"]),
        ("turns", str(one["turns"]) if one["turns"] > 1 else None),
        ("tokens", f"{one['num_tokens']:,}"),
        ("policy version", str(one["version"])),
        ("largest difference", f"{number(max(gaps))} nats" if gaps else "not computed"),
        *((f"reward {name}", f"{part:g}") for name, part in one["parts"].items()),
    ]
    return [(name, text) for name, text in pairs if text is not None]


def _left_out(one: dict[str, Any]) -> int:
    """How many tokens are not in the line; older files do not say."""
    return one.get("left_out", one["num_tokens"] - len(one["tokens"]))


def _turns(tokens: Sequence[Sequence[Any]], left_out_after: int | None, left_out: int) -> str:
    """All tokens; the policy's turns and what it read are blocks of their own."""
    most = {
        column: max((abs(token[column]) for token in tokens if token[column] is not None), default=0.0)
        for column in (2, 3)
    }
    shown, kind = [], None
    for i, token in enumerate(tokens):
        if i == left_out_after:
            shown.append(f'<span class="gap">… {left_out:,} tokens …</span>')
        if token[1] != kind:
            shown.append(f'{"" if kind is None else "</span>"}<span class="{_KINDS[token[1]]}">')
            kind = token[1]
        shown.append(_token(token, most))
    return "".join(shown) + ("</span>" if tokens else "")


def _token(token: Sequence[Any], most: dict[int, float]) -> str:
    text, kind, advantage, gap = token
    shown = escaped(text)
    if kind != TRAINED:
        return shown
    words = [
        *([] if advantage is None else [f"advantage {advantage:+.3g}"]),
        *([] if gap is None else [f"difference {gap:+.2g}"]),
    ]
    level = f"a{_level(advantage, most[2])} d{_level(gap, most[3])}"
    return f'<span class="t {level}" title="{", ".join(words)}">{shown}</span>'


def _level(value: float | None, most: float) -> int:
    """From -4 to 4; 0 for what is 0 or not known."""
    if not value or not most:
        return 0
    return round(value / most * _LEVELS) or (1 if value > 0 else -1)
