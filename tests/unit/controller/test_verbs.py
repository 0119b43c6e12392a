"""The verbs of a run on in-process fakes: what the loop would do, one by one."""

import controller_fakes as fakes
import pytest

from hybridrl.bench.workloads import fake_clock
from hybridrl.controller.evaluate import Evaluator
from hybridrl.controller.loop import run
from hybridrl.controller.verbs import Verbs
from hybridrl.errors import VersionError


async def own_loop(verbs: Verbs, steps: int) -> None:
    await verbs.push_weights()
    for _ in range(steps):
        groups = await verbs.sample(verbs.prompts())
        await verbs.score(groups)
        trained = await verbs.train_step(groups)
        await verbs.publish(trained, await verbs.push_weights(), {})


def test_a_loop_on_the_verbs_trains_on_what_the_loop_of_a_run_trains_on() -> None:
    cfg, own, whole = fakes.config(run={"steps": 3}), fakes.World(), fakes.World()
    fake_clock.run(own_loop(Verbs(cfg, own.roles()), 3))
    fake_clock.run(run(cfg, whole.roles()))
    assert [task.sampling.seed for task in own.tasks] == [task.sampling.seed for task in whole.tasks]

    def trained(world):
        return [(b.step, [g.prompt.uid for g in b.groups], b.reward_N.tolist()) for b in world.batches]

    assert trained(own) == trained(whole) and own.version == whole.version == 3


def test_groups_come_in_the_order_of_their_prompts() -> None:
    class Slow(fakes.World):
        def seconds(self, task) -> float:
            return 1.0 / (1 + task.index)

    world = Slow()
    verbs = Verbs(fakes.config(), world.roles())

    async def sample():
        await verbs.push_weights()
        return await verbs.sample(verbs.prompts(5))

    assert [group.prompt.uid for group in fake_clock.run(sample())] == [f"train/{i}" for i in range(5)]


def test_prompts_of_ones_own_have_seeds_of_their_own() -> None:
    world = fakes.World()
    verbs = Verbs(fakes.config(), world.roles())

    async def sample() -> None:
        await verbs.push_weights()
        mine = fakes.Prompt("mine", (1, 2), {})
        await verbs.sample([*verbs.prompts(2), mine, mine])

    fake_clock.run(sample())
    assert len({task.sampling.seed for task in world.tasks}) == 4


def test_answers_of_weights_that_were_not_pushed_are_refused() -> None:
    world = fakes.World()
    verbs = Verbs(fakes.config(), world.roles())

    async def forgets_to_push() -> None:
        await verbs.push_weights()
        for _ in range(2):
            groups = await verbs.sample(verbs.prompts())
            await verbs.score(groups)
            await verbs.train_step(groups)

    with pytest.raises(VersionError, match="step 2 got an answer of policy version 0"):
        fake_clock.run(forgets_to_push())


def test_evaluation_and_checkpoint_are_of_the_present_version() -> None:
    world = fakes.World()
    cfg = fakes.config()
    verbs = Verbs(cfg, world.roles(Evaluator(cfg, [fakes.Prompt("held/0", (1,), {}, "held")], world, world)))

    async def play() -> object:
        await own_loop(verbs, 2)
        await verbs.save()
        return await verbs.evaluate()

    assert fake_clock.run(play()) == world.evaluations[2]
    assert [event[:2] for event in world.events[-2:]] == [("save", 2), ("saved", 2)]


def test_without_held_out_data_there_is_nothing_to_evaluate() -> None:
    assert fake_clock.run(Verbs(fakes.config(), fakes.World().roles()).evaluate()) is None
