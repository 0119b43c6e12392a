"""One RL run, start to end. Read this file first.

    prompts -> rollout -> reward -> buffer -> credit -> columns -> minibatch steps -> weight sync
       ^                              |                                                   |
       |                              +-- max_lag + 1 slots, each for one step <----------+ frees one
       +-- fill() keeps the buffer full while the trainer works

max_lag = 0 is synchronous; max_lag >= 1 overlaps rollout with training. Step k produces policy version k from
answers of version k - 1 - max_lag or newer.

Who waits for whom: train() waits for the buffer, for the trainer and for the sync; fill() waits for a slot,
for the engines and for the reward. The sync waits until no request runs in an engine, so nothing is sampled
from mixed weights.
"""

import asyncio

from hybridrl.batch import Batch
from hybridrl.config.schema import Config
from hybridrl.controller.buffer import RolloutBuffer, Rollouts
from hybridrl.controller.collect import collect
from hybridrl.controller.roles import Roles
from hybridrl.errors import VersionError


async def run(cfg: Config, roles: Roles) -> None:
    """Train from the trainer's version on until cfg.run.steps updates are done, or until asked to stop.

    Either way a checkpoint holds the last update.

    Raises: whatever a role raises. Nothing is retried here; a run is resumed from its last checkpoint.
    """
    version = roles.trainer.version
    await roles.sync.push(version)
    if version == 0:
        await evaluate(cfg, roles, version)
    buffer = RolloutBuffer(cfg.batch.max_lag + 1)
    filler = asyncio.create_task(fill(cfg, roles, buffer, first_step=version + 1))
    try:
        for step in range(version + 1, cfg.run.steps + 1):
            if await train(cfg, roles, buffer, step):
                break
    finally:
        filler.cancel()


async def train(cfg: Config, roles: Roles, buffer: RolloutBuffer, step: int) -> bool:
    """One policy update, from scored groups to engines that serve version `step`; returns True if it was the
    last."""
    observe, trainer = roles.observe, roles.trainer
    with observe.span("step"):
        with observe.span("wait_for_batch"):
            rollouts = await buffer.take()
        if not cfg.batch.max_lag:  # with a lag, the engines generate meanwhile
            await roles.engine.sleep()
        batch = Batch.pack(step, rollouts.groups)
        refuse_stale(batch, cfg.batch.max_lag)
        with observe.span("adv"):
            for finding in roles.credit(batch):
                observe.warn(finding.guard, finding.text)
        minibatches = roles.pack_minibatches(batch)
        with observe.span("old_log_prob"):
            metrics = await trainer.load(batch, minibatches)
        with observe.span("update_actor"):
            reports = [await trainer.step(minibatch.index) for minibatch in minibatches]
        for warning in reports[0].warnings:
            observe.warn(*warning)
        with observe.span("update_weights"):
            swap = await roles.sync.push(step)
    observe.step(step, batch, reports, swap, {**rollouts.metrics, **metrics}, minibatches=minibatches)
    await evaluate(cfg, roles, step)
    last = step == cfg.run.steps or roles.stop_requested()
    await save(cfg, roles, step, rollouts, last=last)
    if not last:
        await buffer.release()
    return last


async def fill(cfg: Config, roles: Roles, buffer: RolloutBuffer, *, first_step: int) -> None:
    """Answer and score the prompts of one step after the other, as far ahead as the buffer has slots."""
    try:
        for step in range(first_step, cfg.run.steps + 1):
            await buffer.reserve()
            await buffer.put(await collect(cfg, roles, step))
    except Exception as error:  # handed to train(), which raises it where the run can end
        await buffer.fail(error)


def refuse_stale(batch: Batch, max_lag: int) -> None:
    oldest = min(trajectory.version for trajectory in batch.trajectories)
    if oldest < batch.step - 1 - max_lag:
        raise VersionError(
            f"step {batch.step} got an answer of policy version {oldest}; "
            f"max_lag = {max_lag} allows {batch.step - 1 - max_lag}"
        )


async def evaluate(cfg: Config, roles: Roles, step: int) -> None:
    """Held-out accuracy before the run, at its end, and every evaluate_every steps."""
    every = cfg.run.evaluate_every
    if roles.evaluator and (step in (0, cfg.run.steps) or (every and step % every == 0)):
        with roles.observe.span("testing"):
            roles.observe.evaluation(step, await roles.evaluator.run(step))


async def save(cfg: Config, roles: Roles, step: int, rollouts: Rollouts, *, last: bool) -> None:
    """A checkpoint after the last step, and at multiples of save_every and export_every."""
    if last or any(every and step % every == 0 for every in (cfg.run.save_every, cfg.run.export_every)):
        with roles.observe.span("save_checkpoint"):
            progress = {"prompts": rollouts.position, "credit": roles.credit.state_dict()}
            await roles.trainer.save(step, progress)
            if last:
                await roles.trainer.finish_saving()
