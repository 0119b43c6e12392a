"""One RL run, start to end. Read this file first.

    prompts -> engines -> reward -> open groups -> credit -> columns -> minibatch steps -> weight sync
       ^                               |                                                     |
       |                               +-- the schedule: which groups a step trains on       |
       +-- RolloutStream keeps the engines busy, as far ahead as the schedule allows <-------+ a new version

max_lag = 0 is synchronous; max_lag >= 1 overlaps rollout with training. Step k produces policy version k from
answers of version k - 1 - max_lag or newer.

Who waits for whom: train() waits for the groups of its step, for the trainer and for the sync; the stream
waits for room in the schedule, for the engines and for the reward. With rollout.swap: drain the sync waits
until no request runs in an engine; otherwise requests are paused meanwhile, and their tokens name versions.
"""

from hybridrl.batch import Batch
from hybridrl.config.run_shape import engines_sleep
from hybridrl.config.schema import Config
from hybridrl.controller.roles import Roles
from hybridrl.controller.stream import RolloutStream, kept_texts
from hybridrl.controller.worth_reading import NUM_SUSPICIOUS, worth_reading
from hybridrl.errors import VersionError
from hybridrl.saved_groups import SavedGroups
from hybridrl.types import mean


async def run(cfg: Config, roles: Roles, resumed: SavedGroups | None = None) -> None:
    """Train from the trainer's version on until cfg.run.steps updates are done, or until asked to stop.

    Either way a checkpoint holds the last update.

    Args:
        resumed: the open groups of the checkpoint that the run resumes from.

    Raises: whatever a role raises. Nothing is retried here; a run is resumed from its last checkpoint.
    """
    version = roles.trainer.version
    await roles.sync.push(version)
    if version == 0:
        await evaluate(cfg, roles, version)
    async with RolloutStream(cfg, roles, resumed) as stream:
        for step in range(version + 1, cfg.run.steps + 1):
            if await train(cfg, roles, stream, step):
                break


async def train(cfg: Config, roles: Roles, stream: RolloutStream, step: int) -> bool:
    """One policy update, from scored groups to engines that serve version `step`; returns True if it was the
    last."""
    observe, trainer, max_lag = roles.observe, roles.trainer, cfg.batch.max_lag
    with observe.span("step"):
        with observe.span("wait_for_batch"):
            rollouts = await stream.take()
        if engines_sleep(cfg):
            await roles.engine.sleep()
        oldest = step - 1 - max_lag if cfg.batch.stale == "mask" else None
        batch = Batch.pack(step, rollouts.groups, oldest=oldest)
        if oldest is None:
            refuse_stale(batch, max_lag)
        with observe.span("adv"):
            for finding in roles.credit(batch):
                observe.warn(finding.guard, finding.text)
        minibatches = roles.pack_minibatches(batch)
        with observe.span("old_log_prob"):
            metrics = await trainer.load(batch, minibatches)
        with observe.span("update_actor"):
            reports = [await trainer.step(minibatch.index) for minibatch in minibatches]
        for warning in reports[-1].warnings:
            observe.warn(*warning)
        with observe.span("update_weights"):
            swap = await roles.sync.push(step)
        if max_lag:
            stream.serve(step)
        stream.goodput.train(batch)
        if kept_texts(cfg, step):
            await show_rollouts(roles, batch)
    measured = {**rollouts.metrics, **await stream.usage(), **lag_metrics(batch), **metrics}
    observe.step(step, batch, reports, swap, measured, minibatches=minibatches)
    await evaluate(cfg, roles, step)
    last = step == cfg.run.steps or roles.stop_requested()
    await save(cfg, roles, step, stream, last=last)
    if not (max_lag or last):  # on-policy, engines begin after evaluation and checkpoint
        stream.serve(step)
    return last


async def show_rollouts(roles: Roles, batch: Batch) -> None:
    """Write down a few trajectories of the step token by token."""
    with roles.observe.span("inspect"):
        why = worth_reading(batch)
        found = await roles.trainer.inspect([*why], NUM_SUSPICIOUS)
    roles.observe.rollouts(batch, found, why)


def lag_metrics(batch: Batch) -> dict[str, float]:
    lags = [batch.step - 1 - trajectory.version for trajectory in batch.trajectories]
    return {"rollout/lag/mean": mean(lags), "rollout/lag/max": float(max(lags))}


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


async def save(cfg: Config, roles: Roles, step: int, stream: RolloutStream, *, last: bool) -> None:
    """A checkpoint after the last step, and at multiples of save_every and export_every."""
    if last or any(every and step % every == 0 for every in (cfg.run.save_every, cfg.run.export_every)):
        with roles.observe.span("save_checkpoint"):
            groups = stream.open_groups()
            progress = {"prompts": roles.prompts.state_dict(), "credit": roles.credit.state_dict()}
            await roles.trainer.save(step, {**progress, "open": groups.facts}, groups)
            if last:
                await roles.trainer.finish_saving()
