"""What stands for a plug-in without torch has its options, its declarations and its refusals."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from hybridrl import registry
from hybridrl.algorithms.declared import _plugin, by_default, declared
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.plugins import build
from hybridrl.errors import ConfigError

EVERY = [(kind, name) for kind, package in PACKAGES.items() for name in registry.names(package)]


def options(plugin: type) -> list[tuple[str, Any, Any, bool]]:
    if not dataclasses.is_dataclass(plugin):
        return []
    hints = get_type_hints(plugin)
    return [
        (field.name, hints[field.name], field.default, field.init) for field in dataclasses.fields(plugin)
    ]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_it_has_the_options_and_names_of_the_plugin(kind: str, name: str) -> None:
    plugin: Any = registry.find(PACKAGES[kind], name)
    read = type(by_default(kind, name))
    assert options(read) == options(plugin)
    own = {attribute for attribute in dir(plugin) if attribute[0] != "_"}
    assert own - {name for name, *_ in options(plugin)} <= set(dir(read))


@pytest.mark.parametrize(
    ("kind", "name", "given"),
    [
        ("policy_loss", "ppo_clip", {"clip_lo": 0.1}),
        ("policy_loss", "ppo_clip", {"clip_low": "wide"}),
        ("policy_loss", "ppo_clip", {"clip_low": 2.0}),
        ("policy_loss", "luspo", {"clip_high": -1.0}),
        ("policy_loss", "dro", {}),
        ("policy_loss", "ppo", {}),
        ("estimator", "gae", {"discount": 2.0}),
        ("estimator", "gdpo", {"weights": [0.0, 0.0]}),
        ("estimator", "rae", {"baseline": {}}),
        ("correction", "token_is", {"cup": 2.0}),
        ("aggregate", "token_mean", {"max_response_tokens": 2}),
    ],
)
def test_it_is_refused_in_the_words_of_the_plugin(kind: str, name: str, given: Mapping[str, Any]) -> None:
    def refusal(make: Callable[..., Any]) -> str:
        with pytest.raises(ConfigError) as refused:
            make(kind, name, given, where="algorithm.loss")
        return str(refused.value)

    assert refusal(declared) == refusal(build)


@pytest.mark.parametrize(
    "body",
    [
        "least: float = LEAST\n    needs = frozenset()",
        "least: float = 1.0\n    needs = frozenset({'turn'}) & TOKEN_COLUMNS",
        "least: float = 1.0\n    needs = frozenset()\n    def __post_init__(self): math.isfinite(self.least)",
    ],
)
def test_a_plugin_that_cannot_be_read_is_imported(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(f"""
import math
from dataclasses import dataclass
from hybridrl.algorithms.base import register_policy_loss
from hybridrl.algorithms.columns import TOKEN_COLUMNS
LEAST = 1.0

@register_policy_loss("mine")
@dataclass(kw_only=True)
class Mine:
    {body}
""")
    package: Any = sys.modules[PACKAGES["policy_loss"]]
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    monkeypatch.setattr("hybridrl.algorithms.declared.folder", lambda kind: tmp_path)
    monkeypatch.delitem(sys.modules, f"{PACKAGES['policy_loss']}.mine", raising=False)
    _plugin.cache_clear()
    try:
        assert declared("policy_loss", "mine", {"least": 2.0}, where="algorithm.loss").least == 2.0
        assert by_default("policy_loss", "mine").least == 1.0
    finally:
        _plugin.cache_clear()
