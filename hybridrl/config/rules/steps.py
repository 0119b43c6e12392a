"""Rules about steps: how a batch divides into minibatches and ranks, the schedule, lag, evaluation."""

from collections.abc import Iterator

from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules.base import RuleContext, one_of
from hybridrl.config.schema import Config
from hybridrl.config.sft_rm import SupervisedConfig
from hybridrl.errors import ConfigError, HybridRLError
from hybridrl.wording import counted


def minibatches_divide_the_step(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    batch = loaded.config.batch
    size = batch.minibatch_prompts or batch.prompts_per_step
    if batch.prompts_per_step % size:
        above = -(-batch.prompts_per_step // size) * size
        near = sorted({above, max(size, above - size)}, key=lambda n: abs(n - batch.prompts_per_step))
        yield ConfigError(
            f"batch.prompts_per_step = {batch.prompts_per_step} is not a multiple of "
            f"batch.minibatch_prompts = {size}",
            where=loaded.where("batch.prompts_per_step", "batch.minibatch_prompts"),
            fix=f"use {one_of(near)}",
        )


def ranks_have_work(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    config = loaded.config
    prompts = config.batch.minibatch_prompts or config.batch.prompts_per_step
    answers, dp = prompts * config.algorithm.samples_per_prompt, config.actor.parallel.dp or 1
    if answers < dp:
        yield ConfigError(
            f"actor.parallel.dp = {counted(dp, 'rank')} share "
            f"{counted(answers, 'trajectory', 'trajectories')} of a minibatch",
            where=loaded.where("actor.parallel.dp"),
            fix=f"use at most {answers}",
        )


def ranks_have_examples(
    loaded: LoadedConfig[SupervisedConfig], context: RuleContext
) -> Iterator[HybridRLError]:
    examples, dp = loaded.config.batch.examples_per_step, loaded.config.actor.parallel.dp or 1
    if examples < dp:
        yield ConfigError(
            f"actor.parallel.dp = {counted(dp, 'rank')} share {counted(examples, 'example')} of a step",
            where=loaded.where("actor.parallel.dp", "batch.examples_per_step"),
            fix=f"batch.examples_per_step={dp} or more",
        )


def lag_is_shorter_than_the_run(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    lag, steps = loaded.config.batch.max_lag, loaded.config.run.steps
    if lag and lag >= steps:
        yield ConfigError(
            f"batch.max_lag = {lag} reaches over the whole run, run.steps = {steps}",
            where=loaded.where("batch.max_lag", "run.steps"),
            fix="use 0 for on-policy, 1 to overlap rollout with training",
        )


def schedule_fits_the_run(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    config, optimizer = loaded.config, loaded.config.actor.optimizer
    updates = config.run.steps * (config.batch.optimizer_steps if isinstance(config, Config) else 1)
    if optimizer.warmup_steps and optimizer.warmup_steps >= updates:
        yield ConfigError(
            f"actor.optimizer.warmup_steps = {optimizer.warmup_steps} never ends, the run has "
            f"{counted(updates, 'optimizer step')}",
            where=loaded.where("actor.optimizer.warmup_steps", "run.steps"),
            fix=f"use fewer than {updates}; actor.optimizer.warmup_steps=0 for a short try",
        )
    if optimizer.min_lr and (optimizer.schedule == "constant" or optimizer.min_lr > optimizer.lr):
        why = (
            "has no effect with schedule constant"
            if optimizer.schedule == "constant"
            else f"is above lr = {optimizer.lr:g}"
        )
        yield ConfigError(
            f"actor.optimizer.min_lr = {optimizer.min_lr:g} {why}",
            where=loaded.where("actor.optimizer.min_lr"),
            fix="use schedule linear or cosine, and a min_lr below lr",
        )
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        place = loaded.where("actor.optimizer.betas")
        yield ConfigError(
            f"actor.optimizer.betas = {list(optimizer.betas)}",
            where=place,
            fix="each is at least 0 and below 1",
        )


def greedy_answers_once(loaded: LoadedConfig, context: RuleContext) -> Iterator[HybridRLError]:
    evaluate = loaded.config.evaluate
    if evaluate.samples_per_prompt > 1 and evaluate.temperature == 0:
        yield ConfigError(
            f"evaluate.samples_per_prompt = {counted(evaluate.samples_per_prompt, 'greedy answer')} are all "
            "the same",
            where=loaded.where("evaluate.samples_per_prompt"),
            fix="set evaluate.temperature, or one sample",
        )
    for key, off in (("top_p", 1.0), ("top_k", None), ("min_p", 0.0)) if evaluate.temperature == 0 else ():
        if (value := getattr(evaluate, key)) != off:
            yield ConfigError(
                f"evaluate.{key} = {value} with evaluate.temperature = 0: a greedy answer has the likeliest "
                "token everywhere",
                where=loaded.where(f"evaluate.{key}"),
                fix=f"set evaluate.temperature, or remove evaluate.{key}",
            )
