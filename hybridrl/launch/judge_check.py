"""Refuses judges that a run could not ask: rules without their engine, and engines that do not fit."""

from collections.abc import Iterator
from pathlib import Path

from hybridrl.config.judge import JudgeConfig
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
    if cfg.judge is not None:
        yield from map(loaded.locate, _unfit_engines(cfg, cfg.judge))


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


def _unfit_engines(cfg: Config, judge: JudgeConfig) -> Iterator[HybridRLError]:
    gpus = cfg.cluster.gpus_per_node
    if gpus and judge.tp > gpus:
        yield ConfigError(
            f"judge.tp = {judge.tp}, and a node has cluster.gpus_per_node = {gpus}: an engine of the judge "
            "is on one node",
            where="judge.tp",
            fix=f"lower it to {gpus}",
        )
    try:
        spec, kind = hub.find_spec(judge.path), kind_of(judge.engine or cfg.rollout.engine)
    except ModelError:  # the engine may serve models that the trainer has no table of
        return
    except HybridRLError as error:
        yield ConfigError(error.what, where="judge.engine", fix=error.fix)
        return
    if spec is None:
        if not Path(judge.path).is_dir():
            yield AbsentModelError(
                f"no model folder at judge.path = {judge.path}",
                where="judge.path",
                fix="give a folder, or a name on the hub",
            )
        return
    yield from _unfit_sizes(judge, spec)
    try:
        layout_in(kind, spec, kind.parallel(tp=judge.tp))
    except HybridRLError as error:
        yield ConfigError(f"the judge: {error.what}", where="judge.tp", fix=error.fix)


def _unfit_sizes(judge: JudgeConfig, spec: ModelSpec) -> Iterator[ConfigError]:
    longest = judge.max_prompt_tokens + judge.max_response_tokens
    if longest > spec.max_positions:
        yield ConfigError(
            f"judge.max_prompt_tokens + max_response_tokens = {longest} is more than the "
            f"{counted(spec.max_positions, 'position')} of {Path(judge.path).name}",
            where="judge.max_prompt_tokens",
            fix=f"lower them to {spec.max_positions} together",
        )
    if judge.kv_cache_tokens is not None and longest > judge.kv_cache_tokens:
        yield ConfigError(
            f"judge.max_prompt_tokens + max_response_tokens = {longest} is more than "
            f"judge.kv_cache_tokens = {judge.kv_cache_tokens}",
            where="judge.kv_cache_tokens",
            fix=f"raise it to {longest} at least",
        )
