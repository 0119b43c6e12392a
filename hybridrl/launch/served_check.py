"""Refuses models that are not trained and that a run could not ask: judges, and frozen players."""

from collections.abc import Iterator
from pathlib import Path

from hybridrl.config.judge import ServedModelConfig
from hybridrl.config.load import LoadedConfig
from hybridrl.config.schema import Config
from hybridrl.errors import AbsentModelError, ConfigError, HybridRLError, ModelError
from hybridrl.models import hub
from hybridrl.models.spec import ModelSpec
from hybridrl.rewards.judges.asked import has_judges
from hybridrl.rewards.parts import rules
from hybridrl.rollout.base import kind_of, layout_in
from hybridrl.wording import counted


def unfit_judges(loaded: LoadedConfig[Config]) -> Iterator[HybridRLError]:
    """Errors about the judges of a config."""
    cfg = loaded.config
    asks = has_judges(cfg.reward, "judge")
    if asks and cfg.judge is None:
        yield ConfigError(
            "reward judge asks a language model of the run, and the section judge is not set",
            where=loaded.where("reward.name", "reward"),
            fix="judge: {path: FOLDER OR NAME ON THE HUB}; reward http asks a service elsewhere",
        )
    if cfg.judge is not None and not asks:
        yield ConfigError(
            f"judge.path = {cfg.judge.path}, and no reward asks it",
            where=loaded.where("judge.path", "judge"),
            fix="remove judge, or add reward judge, alone or as a part of weighted_sum",
        )
    yield from _hidden_keys(loaded)
    if (judge := cfg.judge) is not None:
        keys = "judge.max_prompt_tokens", "max_response_tokens"
        longest = judge.max_prompt_tokens + judge.max_response_tokens
        yield from map(loaded.locate, _unfit_engines(cfg, judge, "judge", longest, keys))


def unfit_frozen(loaded: LoadedConfig[Config]) -> Iterator[HybridRLError]:
    """Errors about the frozen player of a config."""
    cfg, frozen = loaded.config, loaded.config.frozen
    if frozen is None:
        return
    if cfg.environment is None:
        yield ConfigError(
            f"frozen.path = {frozen.path} plays roles of an environment, and there is none",
            where=loaded.where("frozen"),
            fix="environment: {name: ...}, a game of several roles; or remove frozen",
        )
    keys = "rollout.max_context_tokens", ""
    longest = cfg.rollout.max_context_tokens or 0
    yield from map(loaded.locate, _unfit_engines(cfg, frozen, "frozen", longest, keys))


def _hidden_keys(loaded: LoadedConfig[Config]) -> Iterator[ConfigError]:
    """A variable with a service's key that the config does not list."""
    reward = loaded.config.reward
    for key, name, options in rules(reward.name, reward.options):
        variable = options.get("key_variable")
        if name == "http" and variable and variable not in reward.variables:
            yield ConfigError(
                f"{key}.key_variable = {variable}, and reward.variables = {list(reward.variables)} lacks it",
                where=loaded.where("reward"),
                fix=f"add {variable} to reward.variables",
            )


def _unfit_engines(
    cfg: Config, model: ServedModelConfig, section: str, longest: int, keys: tuple[str, str]
) -> Iterator[HybridRLError]:
    """
    Args:
        section: key of the model's section.
        longest: most tokens of a request and its answer.
        keys: the keys that say so, the second one "" if there is one.
    """
    gpus = cfg.cluster.gpus_per_node
    if gpus and model.tp > gpus:
        yield ConfigError(
            f"{section}.tp = {model.tp}, and a node has cluster.gpus_per_node = {gpus}: such an engine is on "
            "one node",
            where=f"{section}.tp",
            fix=f"lower it to {gpus}",
        )
    try:
        spec, kind = hub.find_spec(model.path), kind_of(model.engine or cfg.rollout.engine)
    except ModelError:  # the engine may serve models that the trainer has no table of
        return
    except HybridRLError as error:
        yield ConfigError(error.what, where=f"{section}.engine", fix=error.fix)
        return
    if spec is None:
        if not Path(model.path).is_dir():
            yield AbsentModelError(
                f"no model folder at {section}.path = {model.path}",
                where=f"{section}.path",
                fix="give a folder, or a name on the hub",
            )
        return
    yield from _unfit_sizes(model, spec, section, longest, keys)
    try:
        layout_in(kind, spec, kind.parallel(tp=model.tp))
    except HybridRLError as error:
        yield ConfigError(f"the model of {section}: {error.what}", where=f"{section}.tp", fix=error.fix)


def _unfit_sizes(
    model: ServedModelConfig, spec: ModelSpec, section: str, longest: int, keys: tuple[str, str]
) -> Iterator[ConfigError]:
    said = " + ".join(filter(None, keys))
    if longest > spec.max_positions:
        yield ConfigError(
            f"{said} = {longest} is more than the {counted(spec.max_positions, 'position')} of "
            f"{Path(model.path).name}",
            where=keys[0],
            fix=f"lower it to {spec.max_positions}, the sum if there are two",
        )
    if model.kv_cache_tokens is not None and longest > model.kv_cache_tokens:
        yield ConfigError(
            f"{said} = {longest} is more than {section}.kv_cache_tokens = {model.kv_cache_tokens}",
            where=f"{section}.kv_cache_tokens",
            fix=f"raise it to {longest} at least",
        )
