"""One RL run, start to end. Read this file first.

    prompts -> engines -> reward -> open groups -> credit -> columns -> minibatch steps -> weight sync
       ^                               |                                                     |
       |                               +-- the schedule: which groups a step trains on       |
       +-- RolloutStream keeps the engines busy, as far ahead as the schedule allows <-------+ a new version

max_lag = 0 is synchronous; max_lag >= 1 overlaps rollout with training. Step k produces policy version k from
answers of version k - 1 - max_lag or newer.

The steps are written on the verbs of verbs.py, with which a loop of your own is written too.

Who waits for whom: run() waits for the groups of a step, for the trainer and for the sync; the stream waits
for room in the schedule, for the engines and for the reward. With rollout.swap: drain the sync waits until no
request runs in an engine; otherwise requests are paused meanwhile, and their tokens name versions.
"""

from hybridrl.config.schema import Config
from hybridrl.controller.roles import Roles
from hybridrl.controller.stream import RolloutStream
from hybridrl.controller.verbs import Verbs
from hybridrl.saved_groups import SavedGroups


async def run(cfg: Config, roles: Roles, resumed: SavedGroups | None = None) -> None:
    """Train from the trainer's version on until cfg.run.steps updates are done, or until asked to stop.

    Either way a checkpoint holds the last update.

    Args:
        resumed: the open groups of the checkpoint that the run resumes from.

    Raises: whatever a role raises. Nothing is retried here; a run is resumed from its last checkpoint.
    """
    verbs = Verbs(cfg, roles)
    await roles.sync.push(verbs.version)
    if verbs.version == 0:
        await evaluate(cfg, verbs)
    async with RolloutStream(cfg, roles, resumed) as stream:
        for step in range(verbs.version + 1, cfg.run.steps + 1):
            with roles.observe.span("step"):
                with roles.observe.span("wait_for_batch"):
                    rollouts = await stream.take()
                trained = await verbs.train_step(rollouts.groups)
                swap = await verbs.push_weights()
                if cfg.batch.max_lag:
                    stream.serve(step)
                stream.goodput.train(trained.batch)
            await verbs.publish(trained, swap, {**rollouts.metrics, **await stream.usage()})
            await evaluate(cfg, verbs)
            last = step == cfg.run.steps or roles.stop_requested()
            await save(cfg, verbs, stream, last=last)
            if last:
                break
            if not cfg.batch.max_lag:  # on-policy, engines begin after evaluation and checkpoint
                stream.serve(step)


async def evaluate(cfg: Config, verbs: Verbs) -> None:
    """Held-out accuracy before the run, at its end, and every evaluate_every steps."""
    step, every = verbs.version, cfg.run.evaluate_every
    if step in (0, cfg.run.steps) or (every and step % every == 0):
        await verbs.evaluate()


async def save(cfg: Config, verbs: Verbs, stream: RolloutStream, *, last: bool) -> None:
    """A checkpoint after the last step, and at multiples of save_every and export_every."""
    step = verbs.version
    if last or any(every and step % every == 0 for every in (cfg.run.save_every, cfg.run.export_every)):
        await verbs.save(stream.open_groups(), wait=last)
