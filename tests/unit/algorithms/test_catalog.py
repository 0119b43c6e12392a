"""The catalog, its page, the comparison of frameworks and the checks of plug-ins."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hybridrl import registry
from hybridrl.algorithms import catalog
from hybridrl.algorithms.advantages import load_estimator
from hybridrl.algorithms.check import check_estimator, check_plugin, check_policy_loss
from hybridrl.algorithms.document import render
from hybridrl.algorithms.objective import Objective
from hybridrl.algorithms.packages import PACKAGES
from hybridrl.algorithms.settings import SETTINGS
from hybridrl.columns import COLUMNS
from hybridrl.config.presets import PRESETS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.section import PluginConfig
from hybridrl.errors import ConfigError
from hybridrl.observe.names import FIRST_RATIO_ERROR

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "algorithms.md"


def test_every_plugin_is_in_the_catalog_with_source_formula_and_use():
    found = catalog.entries()
    assert {(e.kind, e.name) for e in found} == {
        (k, n) for k, p in PACKAGES.items() for n in registry.names(p)
    }
    assert all(e.title and e.source and e.formula and e.use and e.about for e in found)


def test_every_option_says_what_it_is():
    silent = [(e.kind, e.name, o.name) for e in catalog.entries() for o in e.options if not o.about]
    obvious = {"lowest", "highest", "scale", "shift", "divergence", "episode_weight", "turn_weight"}
    assert {name for _, _, name in silent} <= obvious, silent


def test_options_are_those_that_a_config_may_set():
    for entry in catalog.entries():
        plugin = registry.find(PACKAGES[entry.kind], entry.name)
        fields = [
            f.name
            for f in getattr(plugin, "__dataclass_fields__", {}).values()
            if f.init and f._field_type.name == "_FIELD"
        ]
        assert [o.name for o in entry.options] == fields, entry.name


def test_the_listing_is_json_and_needs_no_torch():
    code = (
        "import json, sys; from hybridrl.algorithms import catalog; print(json.dumps(catalog.listing()));"
        "assert 'torch' not in sys.modules"
    )
    run = {"cwd": ROOT, "capture_output": True, "text": True, "check": True, "timeout": 60}
    out = subprocess.run([sys.executable, "-c", code], **run)
    listing = json.loads(out.stdout)
    assert {"grpo", "gae", "gigpo"} <= {e["name"] for e in listing["estimator"]}
    assert {"dapo", "verl/grpo"} <= {p["name"] for p in listing["preset"]}


def test_every_plugin_is_named_in_a_test():
    tests = "".join(
        p.read_text("utf-8") for p in Path(__file__).parent.glob("test_*.py") if p != Path(__file__)
    )
    missing = [e.name for e in catalog.entries() if not re.search(rf'"{e.name}[" ]', tests)]
    assert not missing


def test_explain_is_for_a_person():
    lines = dict(catalog.explain("gspo"))
    assert "2507.18071" in lines["source"] and "default 0.0003" in lines["  clip_low"]
    assert dict(catalog.explain("dapo"))["  loss.clip_high"] == "0.28"


def test_what_nothing_computes_is_marked_until_a_part_of_a_run_gives_it(monkeypatch):
    def marked() -> set[str]:
        listing = catalog.listing()
        return {
            e["name"] for kind in ("estimator", "preset") for e in listing[kind] if "not usable" in e["needs"]
        }

    assert marked() == set()
    assert "turn_reward (with an environment)" in dict(catalog.explain("gigpo"))["needs"]
    assert dict(catalog.explain("gae"))["needs"] == "old_logp, value (by the critic)"
    monkeypatch.setitem(COLUMNS, "episode", replace(COLUMNS["episode"], source=None))
    assert marked() == {"hierarchical_grpo", "prime_rl/hierarchical_grpo"}


def test_settings_are_explained_too_and_their_keys_are_those_of_a_config():
    assert "2503.14476" in dict(catalog.explain("dynamic_sampling"))["source"]
    for setting in SETTINGS:
        section, _, value = setting.key.partition(": ")
        assert section.startswith("algorithm.")
        AlgorithmConfig.model_validate({section.removeprefix("algorithm."): yaml.safe_load(value)})


def test_explain_knows_inherited_options():
    assert {"  clip_low", "  clip_high"} <= dict(catalog.explain("luspo")).keys()


def test_a_name_of_a_framework_without_a_row_is_explained():
    with pytest.raises(ConfigError, match="answers of a frozen model"):
        catalog.find("prime_rl/sft")


def test_an_unknown_algorithm_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean.*gspo"):
        list(catalog.explain("gsppo"))


def test_the_page_is_that_of_the_code():
    assert PAGE.read_text("utf-8") == render(), "python -m hybridrl.algorithms.document > docs/algorithms.md"


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """The complete files of the page, importable as my_lab.*"""
    for path, code in re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def configs_of_the_page() -> list[str]:
    return re.findall(r'"(my_lab\.\w+:\w+)"', PAGE.read_text("utf-8"))


def test_the_examples_of_the_page_work_by_dotted_path(examples):
    estimator, loss = configs_of_the_page()
    assert len((examples / "my_lab" / "rank_advantage.py").read_text().splitlines()) <= 24
    plugin = PluginConfig.model_validate({"name": estimator, "scale": 0.5})
    assert all(check.holds for check in check_estimator(plugin)), check_estimator(plugin)
    checks = check_policy_loss(PluginConfig(name=loss), "token_mean")
    assert all(check.holds for check in checks), checks
    advantage_N = load_estimator(AlgorithmConfig(estimator=plugin))
    assert advantage_N is not None and Objective(AlgorithmConfig(loss=loss)).columns == {"old_logp"}


@pytest.mark.parametrize("name", ["gspo", "luspo", "my_lab.hinge_loss:HingeLoss", "unmarked:Loss"])
def test_a_policy_loss_is_told_from_an_estimator(examples, name):
    (examples / "unmarked.py").write_text(
        "from hybridrl.algorithms.base import TokenLoss\n"
        "class Loss:\n"
        "    needs = frozenset()\n"
        "    def __call__(self, logp_T, advantage_T, tokens): return TokenLoss(-advantage_T * logp_T)\n"
    )
    checks = check_plugin(PluginConfig(name=name))
    assert "direction" in {check.name for check in checks} and all(check.holds for check in checks)


@pytest.mark.parametrize("name", ["grpo", "a_star_po", "my_lab.rank_advantage:RankAdvantage"])
def test_an_estimator_is_checked_as_one(examples, name):
    assert "permutation" in {check.name for check in check_plugin(PluginConfig(name=name))}


def test_an_option_of_an_outside_plugin_is_checked(examples):
    estimator, _ = configs_of_the_page()
    with pytest.raises(ConfigError, match="did you mean scale"):
        load_estimator(AlgorithmConfig(estimator={"name": estimator, "scales": 2}))


STATEFUL = {"rae"}  # depends on the order by definition


@pytest.mark.parametrize("name", registry.names(PACKAGES["estimator"]))
def test_our_own_estimators_pass_their_checks(name):
    failed = [c for c in check_estimator(PluginConfig(name=name)) if not c.holds]
    assert [c.name for c in failed] == (["permutation"] if name in STATEFUL else [])


@pytest.mark.parametrize("name", registry.names(PACKAGES["policy_loss"]))
def test_our_own_losses_pass_their_checks(name):
    allowed = getattr(registry.find(PACKAGES["policy_loss"], name), "aggregates", {"token_mean"})
    plugin = PluginConfig.model_validate({"name": name, **({"beta": 0.1} if name == "dro" else {})})
    failed = [c for c in check_policy_loss(plugin, sorted(allowed)[0]) if not c.holds]
    assert not failed


PLANTED_ESTIMATORS = {
    "permutation": "lambda reward_N, group_N: reward_N - reward_N[0]",
    "finite": "lambda reward_N, group_N: reward_N[:3]",
    "non-finite reward": "lambda reward_N, group_N: reward_N * 2",
}


@pytest.mark.parametrize("check", PLANTED_ESTIMATORS)
def test_a_broken_estimator_fails_its_check(tmp_path, monkeypatch, check):
    module = f"broken_{check.replace(' ', '_').replace('-', '_')}"
    code = f"advantage = {PLANTED_ESTIMATORS[check]}\nadvantage.needs = frozenset()\n"
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    failed = {c.name for c in check_estimator(PluginConfig(name=f"{module}:advantage")) if not c.holds}
    assert check in failed


PLANTED_LOSSES = {
    "direction": "advantage_T * logp_T",
    "4 ranks, 2 microbatches": "-advantage_T * logp_T / tokens.mask_T.sum()",
}


@pytest.mark.parametrize("check", PLANTED_LOSSES)
def test_a_broken_loss_fails_its_check(tmp_path, monkeypatch, check):
    module = f"broken_loss_{len(check)}"
    code = (
        "from hybridrl.algorithms.base import TokenLoss\n"
        f"def loss(logp_T, advantage_T, tokens):\n    return TokenLoss({PLANTED_LOSSES[check]})\n"
        "loss.needs = frozenset()\n"
    )
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    failed = {
        c.name for c in check_policy_loss(PluginConfig(name=f"{module}:loss"), "token_mean") if not c.holds
    }
    assert check in failed


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_known_plugins(name):
    config = AlgorithmConfig.model_validate(PRESETS[name].algorithm)
    assert load_estimator(config) is not None and Objective(config, max_response_tokens=16).columns


def test_the_page_names_the_metric_of_the_first_ratio():
    (line,) = [part for part in render().split("\n- ") if part.startswith("**The first ratio**")]
    assert f"`{FIRST_RATIO_ERROR}`" in line and "`actor/ratio_max_abs_err`" not in line
