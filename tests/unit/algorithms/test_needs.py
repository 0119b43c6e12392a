"""What an algorithm asks of a run is read without torch, and is what its plug-ins themselves say."""

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from hybridrl import registry
from hybridrl.algorithms import Objective, load_estimator
from hybridrl.algorithms.declared import declared
from hybridrl.algorithms.needs import Needs
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.plugins import build
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.errors import ConfigError
from tests.support.algorithm_choices import algorithms

DECLARATIONS = ("needs", "makes", "token_needs", "per_token", "replaces_old_logp")
PLUGINS = [(kind, name) for kind in PACKAGES for name in registry.names(PACKAGES[kind])]


def needs(**algorithm: Any) -> Needs:
    return Needs.of(AlgorithmConfig.model_validate(algorithm))


def values(hint: Any) -> list[Any]:
    """Some values of an option."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if len(parts := [part for part in get_args(hint) if part is not Ellipsis]) > 1:
        return [value for part in parts for value in values(part)]
    return {bool: [False, True], float: [0.5, 1.0], int: [1, 3], type(None): [None]}.get(hint, [])


def variants(kind: str, name: str) -> Iterator[dict[str, Any]]:
    """Options of a plug-in: what must be given, with no other, one other and two others."""
    plugin = registry.find(PACKAGES[kind], name)
    hints = get_type_hints(plugin)
    fields = [f for f in dataclasses.fields(plugin) if f.init] if dataclasses.is_dataclass(plugin) else []
    given = {
        field.name: values(hints[field.name])[0]
        for field in fields
        if field.default is field.default_factory is dataclasses.MISSING
    }
    changes = [(field.name, value) for field in fields for value in values(hints[field.name])]
    for count in (0, 1, 2):
        for chosen in itertools.combinations(changes, count):
            yield given | dict(chosen)


@pytest.mark.parametrize(("kind", "name"), PLUGINS)
def test_a_plugin_declares_what_it_says(kind: str, name: str) -> None:
    tried = 0
    for options in variants(kind, name):
        try:
            made = build(kind, name, options, where="algorithm")
        except ConfigError:
            continue
        read, tried = declared(kind, name, options, where="algorithm"), tried + 1
        for what in DECLARATIONS:
            assert getattr(read, what, None) == getattr(made, what, None), (options, what)
    assert tried


def test_needs_are_those_of_objective_and_estimator() -> None:
    compared = 0
    for algorithm in algorithms():
        try:
            objective, estimator = Objective(algorithm, max_response_tokens=8), load_estimator(algorithm)
        except ConfigError:
            continue
        found, compared = Needs.of(algorithm), compared + 1
        assert (found.objective, found.estimator) == (objective.columns, estimator.needs), algorithm
        assert found.prepares == objective.prepares
    assert compared > 1000


@pytest.mark.parametrize(
    ("algorithm", "models"),
    [
        ({}, ()),
        ({"kl": {"coefficient": 0.1}}, ("reference",)),
        ({"kl": {"coefficient": 0.1, "in": "reward"}}, ("reference",)),
        ({"kl": {"coefficient": 0.0, "in": "reward"}}, ()),
        ({"loss": "copg"}, ("reference",)),
        ({"loss": {"name": "a_star_po", "beta": 0.1}}, ("reference",)),
        ({"estimator": "gae"}, ("critic",)),
        ({"estimator": "gae", "loss": "copg"}, ("critic", "reference")),
        ({"estimator": "prime"}, ("process model", "reference")),
        ({"estimator": "distillation"}, ("teacher",)),
        ({"estimator": "distillation", "kl": {"coefficient": 0.1}}, ("reference", "teacher")),
        ({"estimator": "distillation", "hint": {"field": "x"}}, ()),
        ({"estimator": "distillation", "hint": {"field": "x"}, "teacher": "t"}, ("teacher",)),
    ],
)
def test_models_are_those_that_compute_the_columns(algorithm: dict, models: tuple[str, ...]) -> None:
    assert needs(**algorithm).models == models


@pytest.mark.parametrize(
    ("algorithm", "passes"),
    [
        ({}, 0),
        ({"kl": {"coefficient": 0.1}}, 0),
        ({"kl": {"coefficient": 0.1, "in": "reward"}}, 1),
        ({"kl": {"coefficient": 0.1, "target": 0.1}}, 1),
        ({"estimator": "gae"}, 1),
        ({"loss": "clip_cov"}, 1),
        ({"correction": ["token_is"]}, 1),
        ({"entropy_top_share": 0.2}, 1),
        ({"estimator": "optimal_token_baseline"}, 2),
        ({"estimator": "distillation", "hint": {"field": "x"}}, 2),
        ({"estimator": "distillation", "hint": {"field": "x"}, "teacher": "t"}, 1),
    ],
)
def test_a_single_step_is_scored_first_where_something_asks(algorithm: dict, passes: int) -> None:
    assert needs(**algorithm).policy_passes(1) == passes
    assert needs(**algorithm).policy_passes(2) == max(passes, 1)


@pytest.mark.parametrize(
    ("algorithm", "passes"),
    [
        ({}, 0),
        ({"loss": "clip_cov"}, 0),
        ({"kl": {"coefficient": 0.1}}, 0),
        ({"estimator": "gae"}, 1),
        ({"kl": {"coefficient": 0.1, "in": "reward"}}, 1),
        ({"kl": {"coefficient": 0.1, "target": 0.1}}, 1),
        ({"entropy_top_share": 0.2}, 1),
        ({"estimator": "optimal_token_baseline"}, 2),
    ],
)
def test_with_bypass_nothing_is_scored_first_that_only_old_logp_is_for(algorithm: dict, passes: int) -> None:
    found = needs(correction=["bypass"], **algorithm)
    assert found.policy_passes(1) == found.policy_passes(4) == passes
    assert found.policy_passes(4, replays_experts=True) == max(passes, 1)


def test_a_preset_has_a_teacher_if_its_algorithm_asks_one() -> None:
    for name, preset in PRESETS.items():
        assert preset.has_teacher == ("teacher" in needs(**preset.algorithm).models), name


def test_a_plugin_from_outside_is_asked_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside_needs.py").write_text(
        "from dataclasses import dataclass\n"
        "from hybridrl.algorithms.policy_losses.vespo import VESPO\n"
        "COLUMNS = {'judged': frozenset({'value'}), 'free': frozenset()}\n"
        "@dataclass(frozen=True)\n"
        "class Baseline:\n"
        "    by: str = 'free'\n"
        "    @property\n"
        "    def needs(self): return COLUMNS[self.by]\n"
        "class Anchored(VESPO):\n"
        "    @property\n"
        "    def needs(self): return super().needs | {'ref_logp'}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert needs(estimator="outside_needs:Baseline").models == ()
    assert needs(estimator={"name": "outside_needs:Baseline", "by": "judged"}).models == ("critic",)
    assert needs(loss="outside_needs:Anchored").models == ("reference",)
    with pytest.raises(ConfigError, match="cannot import"):
        needs(estimator="no_such_module:Baseline")


def test_an_unknown_name_is_refused_at_its_key() -> None:
    for key in ("estimator", "loss"):
        with pytest.raises(ConfigError, match="has no 'grop'") as refused:
            needs(**{key: "grop"})
        assert refused.value.where == f"algorithm.{key}"
    with pytest.raises(ConfigError, match="corrections has no 'bypas'"):
        needs(correction=["bypas"])


def test_torch_is_not_imported() -> None:
    code = (
        "import sys\n"
        "from hybridrl.algorithms.needs import Needs\n"
        "from hybridrl.config.presets import PRESETS\n"
        "from hybridrl.config.schema import AlgorithmConfig\n"
        "for preset in PRESETS.values(): Needs.of(AlgorithmConfig.model_validate(preset.algorithm))\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
