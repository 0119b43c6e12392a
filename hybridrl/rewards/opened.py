"""Checks patterns of a reward against what the template writes at the head of every answer.

A template that ends the prompt with <think> leaves an answer without that tag: a pattern that asks for it
matches no answer, and every reward is 0.
"""

import re
from collections.abc import Iterator
from re import _constants, _parser  # type: ignore  # the only parser that reads what re reads
from typing import Any

from hybridrl.config.schema import RewardConfig
from hybridrl.errors import ConfigError
from hybridrl.rewards.parts import rules

_TAG = re.compile(r"<[A-Za-z_]\w*>")
_TAG_AT_END = re.compile(r"<[A-Za-z_]\w*>\s*\Z")
_PATTERNS = {"regex": "pattern", "exact_match": "extract"}
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)


def opened_part(written: str, *, by_template: bool) -> str:
    """What stands in front of an answer and belongs to its form; "" if nothing does.

    Args:
        written: what a chat template writes between the last message and the answer, or a whole prompt.
        by_template: it is the former, in which all from the first tag on belongs to the answer. In a prompt
            only a tag at its very end does.
    """
    found = (_TAG if by_template else _TAG_AT_END).search(written)
    return written[found.start() :] if found else ""


def check_patterns(reward: RewardConfig, opened: str, *, where: str) -> None:
    """Refuse a pattern that the opened part hides a tag from, and an option `opened` that is not written.

    Raises:
        ConfigError: the message names the key, the pattern, and what stands in front of an answer.
    """
    for key, name, options in rules(reward.name, reward.options):
        if name not in _PATTERNS:
            continue
        pattern, shown = options.get(_PATTERNS[name]), options.get("opened")
        if shown and not opened.rstrip().endswith(shown.strip()):
            raise ConfigError(
                f"{key}.opened = {shown!r}, and the prompt ends with {opened!r}",
                where=where,
                fix=f"leave {key}.opened out, or set it to what the prompt ends with",
            )
        hidden = [tag for tag in _TAG.findall(opened) if isinstance(pattern, str) and requires(pattern, tag)]
        if not shown and hidden:
            raise _hides(f"{key}.{_PATTERNS[name]}", pattern, hidden[0], opened, where, name)


def requires(pattern: str, text: str) -> bool:
    """Whether every match of a pattern contains a text, as far as its letters show."""
    return _requires(_parser.parse(pattern), text.lower())


def _requires(sequence: Any, text: str) -> bool:
    letters = ""
    for kind, value in sequence:
        if kind is _constants.LITERAL:
            letters += chr(value).lower()
        elif kind is not _constants.AT:  # a place, such as ^, has no width
            letters += "\0"
            if any(all(_requires(way, text) for way in ways) for ways in _parts(kind, value)):
                return True
    return text in letters


def _parts(kind: Any, value: Any) -> Iterator[list[Any]]:
    """The alternatives inside a part of a pattern, one of which is in every match; nothing if it has none."""
    if kind is _constants.SUBPATTERN:
        yield [value[3]]
    elif kind is _constants.ATOMIC_GROUP:
        yield [value]
    elif kind is _constants.BRANCH:
        yield value[1]
    elif kind is _constants.ASSERT:
        yield [value[1]]
    elif kind in _REPEATS and value[0] > 0:
        yield [value[2]]


def _hides(key: str, pattern: Any, tag: str, opened: str, where: str, name: str) -> ConfigError:
    owner = key.rpartition(".")[0]
    show = f"{owner}.opened: {opened!r} shows it to the pattern"
    return ConfigError(
        f"{key} = {pattern!r} asks for {tag}, and the prompt ends with {opened!r}: no answer has that tag",
        where=where,
        fix=show if name == "regex" else f"leave {tag} out of {key}",
    )
