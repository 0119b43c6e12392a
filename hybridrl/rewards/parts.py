"""The rules that a reward of a config is made of."""

from collections.abc import Iterator, Mapping
from typing import Any


def rules(
    name: str, options: Mapping[str, Any], key: str = "reward"
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Config key, name and options of each rule: the reward itself, or the parts of a sum."""
    if name != "weighted_sum":
        yield key, name, options
        return
    for label, part in options["parts"].items():
        own = {option: value for option, value in part.items() if option not in ("name", "weight")}
        yield from rules(part["name"], own, f"{key}.parts.{label}")
