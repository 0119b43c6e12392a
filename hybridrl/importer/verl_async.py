"""How many prompts a policy update trains on and how many updates a run takes; and verl's asynchronous
training: how old an answer may be, and what a swap does with running requests.

Source: verl 0.9.1, ppo/ray_trainer.py; experimental/fully_async_policy, August 2026: FullyAsyncTrainer takes
ppo_mini_batch_size x require_batches prompts at a time, and gives the engines its weights after every
trigger_parameter_sync_step of them.
"""

import math

from hybridrl.importer.translation import Line, Remark
from hybridrl.importer.verl_keys import A
from hybridrl.importer.verl_script import Found, Script

_STALENESS = "async_training.staleness_threshold"
_PARTIAL = "async_training.partial_rollout"
_TAKES = "async_training.require_batches"
_SYNC = "async_training.trigger_parameter_sync_step"
_MINIBATCH = f"{A}.ppo_mini_batch_size"
_SAMPLES = "rollout.total_rollout_steps"


def asynchronous(script: Script) -> Found:
    """Yields batch.max_lag and rollout.swap; other keys of async_training are reported as untranslated."""
    if not {_STALENESS, _PARTIAL} & script.by_key.keys() and not script.is_fully_async:
        return
    lag = math.ceil(script.number(_STALENESS, 1))
    note = "policy updates; verl counts the share of a batch that may be older than its weights"
    yield Line("batch.max_lag", lag, script.source(_STALENESS), note)
    partial = script.get(_PARTIAL, False)
    if partial is True and lag:
        yield Line("rollout.swap", "in_flight", script.source(_PARTIAL))
    elif partial is True:
        yield Remark(script.source(_PARTIAL), "rollout.swap=in_flight needs batch.max_lag above 0")


def batch(script: Script) -> Found:
    """Yields batch.prompts_per_step: the prompts between two updates of the engines."""
    prompts = prompts_per_update(script)
    if not script.is_fully_async:
        yield Line("batch.prompts_per_step", prompts, script.source(_PROMPTS), "prompts, in verl too")
        return
    parts = f"{script.count(_MINIBATCH, 256)} x {script.count(_TAKES, 1)} x {script.count(_SYNC, 4)}"
    sources = ", ".join(dict.fromkeys((script.source(_TAKES), script.source(_SYNC), script.source(_PROMPTS))))
    yield Line(
        "batch.prompts_per_step", prompts, sources, f"prompts until the engines get new weights: {parts}"
    )


_PROMPTS = "data.train_batch_size"


def prompts_per_update(script: Script) -> int:
    """
    Raises:
        ConfigError: a size is not 1 or more.
    """
    if not script.is_fully_async:
        return script.count(_PROMPTS, 1024)
    script.get(_PROMPTS)
    return script.count(_MINIBATCH, 256) * script.count(_TAKES, 1) * script.count(_SYNC, 4)


def steps(script: Script, num_prompts: int | None) -> tuple[int | None, str]:
    """Policy updates of a run, None if only the number of training rows tells, and the key that says so."""
    prompts, key = prompts_per_update(script), "trainer.total_training_steps"
    epochs = "trainer.total_epochs"
    if script.is_fully_async:
        rows = math.inf if num_prompts is None else num_prompts * script.number(epochs, 30)
        samples = script.number(_SAMPLES, 100)
        return int(min(samples, rows)) // prompts, epochs if rows < samples else _SAMPLES
    if (named := script.number(key)) is not None:
        return named, key
    script.get(epochs)
    return None if num_prompts is None else script.number(epochs, 30) * (num_prompts // prompts), epochs
