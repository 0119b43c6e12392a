"""The rules that a reward of a config is made of."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hybridrl.types import in_row


@dataclass(frozen=True, slots=True)
class Choice:
    """A column says which rule judges a row."""

    key: str
    """Place in the config of these rules."""

    field: str
    value: str
    """What the column has, as text, if this rule judges the row."""

    among: tuple[str, ...]
    """All values that some rule is for."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, and the rows that it judges."""

    key: str
    """Its place in the config."""

    name: str
    options: Mapping[str, Any]

    answer_field: str | None = None
    """Column of its right answers. None: reward.answer_field."""

    choices: tuple[Choice, ...] = ()
    """All of them have to choose it for a row. Empty: it judges all rows."""


def rules(
    name: str, options: Mapping[str, Any], key: str = "reward"
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Config key, name and options of each rule: the reward itself, or those that it is made of."""
    for rule in rules_of(Rule(key, name, options)):
        yield rule.key, rule.name, rule.options


def rules_of(rule: Rule) -> Iterator[Rule]:
    """The rule itself, or those that it is made of, with the rows that each judges."""
    match rule.name:
        case "weighted_sum":
            for label, part in rule.options["parts"].items():
                own = {option: of for option, of in part.items() if option not in ("name", "weight")}
                key = f"{rule.key}.parts.{label}"
                yield from rules_of(replace(rule, key=key, name=part["name"], options=own))
        case "by_field":
            for value, given in rule.options["several"].items():
                yield from rules_of(_of_value(rule, value, given))
        case _:
            yield rule


def chosen_by_row(row: Mapping[str, Any], field: str, values: Collection[str]) -> str:
    """The value of a row's column, as text.

    Raises:
        ValueError: it is none of these.
    """
    value = str(in_row(row, field))
    if value not in values:
        raise ValueError(f"it has {field} = {value[:60]}, and reward.several has {', '.join(values)}")
    return value


def _of_value(rule: Rule, value: str, given: str | Mapping[str, Any]) -> Rule:
    options, key = {"name": given} if isinstance(given, str) else given, f"{rule.key}.several"
    choice = Choice(key, rule.options["field"], value, tuple(rule.options["several"]))
    return Rule(
        f"{key}.{value}",
        options["name"],
        {option: of for option, of in options.items() if option not in ("name", "answer_field")},
        options.get("answer_field", rule.answer_field),
        (*rule.choices, choice),
    )


def rules_of_row(
    name: str, options: Mapping[str, Any], row: Mapping[str, Any]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The rules, as rules() has them, that judge a row."""
    for rule in rules_of(Rule("reward", name, options)):
        if all(str(in_row(row, choice.field)) == choice.value for choice in rule.choices):
            yield rule.key, rule.name, rule.options
