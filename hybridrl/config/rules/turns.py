"""Rules about budgets of tokens and turns: those of episodes, and those of an evaluation."""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext
from hybridrl.config.schema import Config
from hybridrl.errors import ConfigError
from hybridrl.wording import counted

_ANSWER = "evaluate.max_response_tokens"
_CONTEXT = "rollout.max_context_tokens"


def one_plays_the_episodes(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    """Refuses an environment and a program in one run."""
    cfg = loaded.config
    if cfg.environment is not None and cfg.program is not None:
        yield ConfigError(
            f"environment = {cfg.environment.name} and program.command = {' '.join(cfg.program.command)}: an "
            "episode is played by one of them",
            where=loaded.where("program"),
            fix="remove one; a program may bring a world of its own",
        )


def most_turns(cfg: Config) -> int:
    """Most answers of the policy in an episode; 1 without an environment and without a program."""
    if cfg.program is not None:
        return cfg.program.max_requests
    return max(one.max_turns for one in cfg.environment.all.values()) if cfg.environment else 1


def turns_fit_the_context(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    """Refuses a context that is not given, that has no use, or in which the turns do not fit."""
    cfg, rollout = loaded.config, loaded.config.rollout
    given = rollout.max_context_tokens
    if not cfg.has_episodes:
        if given is not None:
            yield ConfigError(
                f"rollout.max_context_tokens = {given} is a budget of episodes, and there is no environment",
                where=loaded.where(_CONTEXT),
                fix="leave it out, or name an environment",
            )
        return
    turns = most_turns(cfg)
    enough = rollout.max_prompt_tokens + turns * rollout.max_response_tokens
    if given is None:
        yield ConfigError(
            f"an episode has up to {counted(turns, 'turn')}, and rollout.max_context_tokens does not say how "
            "long it may be",
            where=loaded.where("environment", "program"),
            fix=f"{_CONTEXT}={enough}, and as many more as results and messages take",
        )
        return
    first = rollout.max_prompt_tokens + rollout.max_response_tokens
    least = first if cfg.program else max(first, rollout.max_prompt_tokens + turns)
    if given < least:
        what = "one answer" if least == first else f"one token for each of {turns} turns"
        yield ConfigError(
            f"rollout.max_context_tokens = {given} does not hold an opening of rollout.max_prompt_tokens = "
            f"{rollout.max_prompt_tokens} and {what}",
            where=loaded.where(_CONTEXT, "rollout.max_prompt_tokens"),
            fix=f"{enough} holds all turns; {least} is the least",
        )


def heldout_answers_fit_the_engine(loaded: LoadedConfig, context: RuleContext) -> Iterator[ConfigError]:
    """Refuses budgets of the evaluation that the engine has no room for, or that nothing has a use for."""
    evaluate, most = loaded.config.evaluate, loaded.config.rollout.max_response_tokens
    if evaluate.max_response_tokens is not None and evaluate.max_response_tokens > most:
        yield ConfigError(
            f"{_ANSWER} = {evaluate.max_response_tokens} is more than rollout.max_response_tokens = {most}, "
            "for which the engines are sized",
            where=loaded.where(_ANSWER),
            fix=f"use at most {most}, or raise rollout.max_response_tokens",
        )
    if evaluate.max_turns is not None and not loaded.config.has_episodes:
        yield ConfigError(
            f"evaluate.max_turns = {evaluate.max_turns} is a budget of episodes, and there is no environment",
            where=loaded.where("evaluate.max_turns"),
            fix="leave it out, or name an environment",
        )
