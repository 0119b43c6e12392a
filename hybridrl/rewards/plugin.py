"""Loads a reward by its name and options as something that scores an answer."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from hybridrl import registry
from hybridrl.config.options import make, taken
from hybridrl.errors import ConfigError
from hybridrl.rewards.reference import plain_text

RULES = "hybridrl.rewards.rules"

SECTION_KEYS = (
    "name",
    "answer_field",
    "timeout_s",
    "memory_gb",
    "num_workers",
    "max_unjudged",
    "min_gold",
    "variables",
)
"""The other keys of the config section, which are suggested too when an option is mistyped."""

_FOREIGN = {
    "data_source": "verl",
    "solution_str": "verl",
    "prompts": "TRL",
    "completions": "TRL",
    "sample": "slime",
}
"""Parameters that other frameworks fill by position or by name, among the first two of their rewards. Called
with (answer, row) such a function may return a number, and a wrong one."""


@dataclass(frozen=True, slots=True)
class LoadedReward:
    """A reward with its options bound."""

    name: str
    function: Callable[..., Any]
    takes_answer_field: bool
    place: str
    """file:line where it is defined."""

    hang_score: float | None
    """Reward of an answer that was not judged in time or in memory, from the attribute `hang_score` of the
    reward: it says that the answer is to blame, not the reward. None: such an answer ends the run."""

    def __call__(self, answer: str, row: Mapping[str, Any], *, answer_field: str) -> Any:
        """What the reward returns for an answer, unchecked."""
        given = {"answer_field": answer_field} if self.takes_answer_field else {}
        return self.function(answer, _with_answer(row, answer_field), **given)

    def warm_up(self) -> None:
        """Call the reward's method `warm_up()`, if it has one. It does the imports for which neither a check
        of the options nor the first answer should wait."""
        if warm_up := getattr(self.function, "warm_up", None):
            warm_up()

    def gold(self, row: Mapping[str, Any], *, answer_field: str) -> str | None:
        """An answer that this reward should accept, made from the reference; None: none can be made.

        A reward makes it in a method `gold(row, answer_field=...)`; without one it is the reference as text.
        """
        own, row = getattr(self.function, "gold", None), _with_answer(row, answer_field)
        if own is not None:
            return own(row, answer_field=answer_field)
        value = row.get(answer_field)
        return None if value is None else plain_text(value)

    @property
    def makes_gold(self) -> bool:
        """Whether the reward itself makes the answer that it should accept from a reference."""
        return hasattr(self.function, "gold")

    @property
    def checks_rows(self) -> bool:
        """Whether the reward can say which rows it cannot judge."""
        return hasattr(self.function, "check_row")

    def fault(self, row: Mapping[str, Any], *, answer_field: str) -> str | None:
        """Why no answer to a row can be right, as the reward's method `check_row` says; None if one can."""
        rule: Any = self.function
        try:
            rule.check_row(_with_answer(row, answer_field), answer_field=answer_field)
        except ValueError as error:
            return str(error) or "its check_row raises ValueError"
        return None


def hang_score_of(rewards: Iterable[LoadedReward]) -> float | None:
    """The hang_score of a reward made of others: 0 if one of them has one, since the whole is not known when
    that one hangs. None: no reward has one."""
    return None if all(reward.hang_score is None for reward in rewards) else 0.0


def load_reward(
    name: str, options: Mapping[str, Any], *, where: str, key: str = "reward.name"
) -> LoadedReward:
    """The reward of a config, ready to be called.

    Args:
        name: file name in hybridrl.rewards.rules, or module:name for code outside.
        where: the config place, named in errors.
        key: the config key that names it.

    Raises:
        ConfigError: no such reward, options that it does not take, or nothing that can be called as one.
        UserCodeError: code from outside raises while it is imported or made.
    """
    plugin = registry.find(RULES, name, where=where, key=key)
    is_class = isinstance(plugin, type)
    _refuse_foreign(plugin.__call__ if is_class else plugin, name, where)
    place = {"title": f"reward {name}", "where": where, "beside": SECTION_KEYS}
    if is_class:
        function = make(plugin, name, options, key=key, **place)
    else:
        values = taken(plugin, options, positional=2, supplied=("answer_field",), **place)
        function = partial(plugin, **values)
    takes_answer_field = _takes_answer_field(function, name, where)
    hang_score = getattr(function if is_class else plugin, "hang_score", None)
    return LoadedReward(name, function, takes_answer_field, _place(plugin), hang_score)


def _refuse_foreign(function: Callable[..., Any], name: str, where: str) -> None:
    """
    Raises:
        ConfigError: it has to be awaited, or its parameters are those of another framework's rewards.
    """
    code = function if inspect.isroutine(function) else type(function).__call__
    if inspect.iscoroutinefunction(code):
        raise ConfigError(
            f"reward {name} is async, and nothing awaits it",
            where=where,
            fix="write a plain function; reward.num_workers processes call it at the same time",
        )
    try:
        parameters = [p for p in inspect.signature(code).parameters.values() if p.name != "self"]
    except ValueError:  # a builtin without a signature
        return
    if known := [_FOREIGN[p.name] for p in parameters[:2] if p.name in _FOREIGN]:
        names = ", ".join(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
        raise ConfigError(
            f"reward {name} takes ({names}), as a reward of {known[0]} does",
            where=where,
            fix="write a function of (answer, row) that calls it: docs/own_reward.md",
        )


def _with_answer(row: Mapping[str, Any], answer_field: str) -> Mapping[str, Any]:
    """The row, with an answer inside a column (reward_model.ground_truth) added under its dotted name."""
    value: Any = row
    for name in () if answer_field in row else answer_field.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return row
        value = value[name]
    return row if value is row else {**row, answer_field: value}


def _takes_answer_field(function: Callable[..., Any], name: str, where: str) -> bool:
    try:
        signature = inspect.signature(function)
        kinds = signature.parameters.values()
        takes_it = "answer_field" in signature.parameters or any(p.kind is p.VAR_KEYWORD for p in kinds)
        signature.bind("", {}, **({"answer_field": ""} if takes_it else {}))
    except TypeError as error:
        raise ConfigError(
            f"reward {name} cannot be called: {error}",
            where=where,
            fix="a reward takes (answer, row) and its options",
        ) from error
    return takes_it


def _place(plugin: Callable) -> str:
    source = plugin if inspect.isroutine(plugin) or isinstance(plugin, type) else type(plugin)
    try:
        return f"{inspect.getsourcefile(source)}:{inspect.getsourcelines(source)[1]}"
    except (TypeError, OSError):  # a builtin, or code without a file
        return ""
