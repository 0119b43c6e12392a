"""The episode runner on an engine that answers when it is told to."""

import asyncio

import numpy as np
import pytest

from hybridrl.errors import EngineError
from hybridrl.rollout import episodes
from hybridrl.rollout.base import Answer
from hybridrl.rollout.episodes import EpisodeRunner
from hybridrl.rollout.groups import Ticket
from hybridrl.rollout.streams import Played, TokenStream
from hybridrl.rollout.turns import Outcome
from hybridrl.seeds import sample_seed
from hybridrl.types import GroupTask, Prompt, Sampling, Usage


class Engine:
    """Answers a request of seed s with the tokens s % 50, s % 50 + 1, ... once `end` is called."""

    def __init__(self) -> None:
        self.inside, self.asked, self.version, self.calls = {}, [], 0, []

    async def request(self, request):
        self.asked.append(request)
        future = self.inside[request.id] = asyncio.get_running_loop().create_future()
        return await future

    def end(self, name, versions=None, finish="stop"):
        request = next(one for one in self.asked if one.id == name)
        versions = [self.version] * request.sampling.max_response_tokens if versions is None else versions
        token_T = np.arange(len(versions), dtype=np.int32) + request.sampling.seed % 50
        found = Answer(
            id=name,
            token_T=token_T,
            logp_T=-np.ones(len(versions), np.float32),
            version_T=np.array(versions, np.int32),
            finish=finish,
        )
        self.inside.pop(name).set_result(found)

    def end_all(self):
        for name in list(self.inside):
            self.end(name)

    async def abort(self, ids):
        self.calls.append(("abort", tuple(ids)))
        for name in ids:
            self.end(name, [self.version], "abort")

    async def pause(self, *, keep_cache=False):
        self.calls.append("pause, keeping the cache" if keep_cache else "pause")

    async def continue_(self):
        self.calls.append("continue_")


def ticket(number, *, samples=2, tokens=3, seed=7, greedy=None, prompt=(1, 2)):
    sampling = Sampling(num_samples=samples, max_response_tokens=tokens, seed=seed)
    return Ticket(
        number,
        GroupTask(index=number, prompt=Prompt(f"t/{number}", prompt, {}), sampling=sampling, greedy=greedy),
    )


async def settle():
    for _ in range(6):
        await asyncio.sleep(0)


def test_a_group_comes_back_whole_with_its_tokens_in_one_block():
    async def scenario():
        runner = EpisodeRunner(engine := Engine())
        greedy = Sampling(num_samples=1, max_response_tokens=2, temperature=0.0, seed=3)
        runner.submit([ticket(0), ticket(5, seed=8, greedy=greedy, prompt=(4, 5, 6))])
        await settle()
        assert [one.id for one in engine.asked] == ["0/0/0", "0/1/0", "5/0/0", "5/1/0", "5/greedy/0"]
        engine.end_all()
        return engine.asked, *await runner.finished()

    asked, groups, block = asyncio.run(scenario())
    assert [one.sampling.seed for one in asked[:4]] == [sample_seed(s, i) for s in (7, 8) for i in (0, 1)]
    assert asked[4].sampling.temperature == 0.0 and {one.sampling.num_samples for one in asked} == {1}
    assert [group.ticket for group in groups] == [0, 5]
    found = [t for group in groups for t in [*group.trajectories, *filter(None, [group.greedy])]]
    assert [t.row for t in found] == [0, 1, 2, 3, 4] and len(block) == 5
    for trajectory, request in zip(found, asked, strict=True):
        first = request.sampling.seed % 50
        row = block.token_T[block.row(trajectory.row)].tolist()
        assert row == [*request.token_ids, *range(first, first + trajectory.response_tokens)]
        assert trajectory.prompt_tokens == len(request.token_ids) and trajectory.version == 0
    assert groups[0].greedy is None and groups[1].greedy.response_tokens == 2


def test_a_group_is_not_finished_before_its_last_sample():
    async def scenario():
        runner = EpisodeRunner(engine := Engine())
        runner.submit([ticket(0), ticket(1)])
        waiting = asyncio.create_task(runner.finished())
        await settle()
        engine.end("0/0/0"), engine.end("1/1/0"), engine.end("1/0/0")
        first = [group.ticket for group in (await waiting)[0]]
        engine.end("0/1/0")
        return first, [group.ticket for group in (await runner.finished())[0]], await runner.finished()

    assert asyncio.run(scenario()) == ([1], [0], ([], None))


def test_no_more_than_the_limit_are_inside_and_a_hold_lets_nobody_in():
    async def scenario():
        runner = EpisodeRunner(engine := Engine(), most_requests=3)
        runner.submit([ticket(i) for i in range(4)])
        await settle()
        sizes = [len(engine.inside)]
        engine.end("0/0/0")
        await settle()
        sizes.append(len(engine.inside))
        runner.hold()
        engine.end_all()
        await settle()
        sizes.append(len(engine.inside))
        await runner.go_on()
        await settle()
        sizes.append(len(engine.inside))
        return sizes, [one.id for one in engine.asked]

    sizes, order = asyncio.run(scenario())
    assert sizes == [3, 3, 0, 3]
    assert order == [f"{group}/{sample}/0" for group in range(4) for sample in range(2)][:7]


def test_a_later_turn_goes_before_first_turns_and_has_a_seed_of_its_own():
    class TwoTurns:
        async def play(self, prompt, seed, ask, *, heldout):
            stream = TokenStream(tokens=list(prompt.token_ids))
            stream.act(await ask(tuple(stream.tokens)), None)
            stream.observe([9])
            stream.act(await ask(tuple(stream.tokens), turn=1), None)
            return Outcome(Played((stream,), "done", "stop"))

    async def scenario():
        runner = EpisodeRunner(engine := Engine(), most_requests=1, player=TwoTurns())
        runner.submit([ticket(0), ticket(1)])
        for _ in range(8):
            await settle()
            engine.end_all()
        return engine.asked

    asked = asyncio.run(scenario())
    assert [one.id for one in asked[:4]] == ["0/0/0", "0/0/1", "0/1/0", "0/1/1"]
    assert asked[1].sampling.seed == sample_seed(7, 0, 1) != asked[0].sampling.seed
    assert asked[1].token_ids[:2] == (1, 2) and asked[1].token_ids[-1] == 9


def test_a_cancelled_group_never_comes_back_and_what_it_sampled_is_counted():
    async def scenario():
        runner = EpisodeRunner(engine := Engine(), most_requests=3)
        runner.submit([ticket(0), ticket(1), ticket(2)])
        await settle()
        engine.end("1/0/0")  # three tokens; two more by the aborts
        await settle()
        await runner.cancel([1, 0, 77])
        await settle()
        runner.submit([ticket(3)])
        for _ in range(3):
            await settle()
            engine.end_all()
        return engine, (await runner.finished())[0], runner.usage(), runner

    engine, groups, usage, _ = asyncio.run(scenario())
    assert [group.ticket for group in groups] == [2, 3]
    assert engine.calls == [("abort", ("1/1/0", "0/0/0", "0/1/0"))]
    assert usage.sampled_tokens == usage.aborted_tokens + 4 * 3
    assert usage.aborted_tokens == 3 + 3


def test_a_cancelled_only_group_ends_the_wait():
    async def scenario():
        runner = EpisodeRunner(Engine())
        runner.submit([ticket(0)])
        waiting = asyncio.create_task(runner.finished())
        await settle()
        await runner.cancel([0])
        return await asyncio.wait_for(waiting, 1)

    assert asyncio.run(scenario()) == ([], None)


def test_an_error_of_the_engine_reaches_the_caller_of_finished():
    class Broken(Engine):
        async def request(self, request):
            raise EngineError("engine 0 ended")

    async def scenario():
        runner = EpisodeRunner(Broken())
        runner.submit([ticket(0)])
        await runner.finished()

    with pytest.raises(EngineError, match="engine 0 ended"):
        asyncio.run(scenario())


def test_spans_name_each_version_and_recomputed_tokens_are_counted():
    async def scenario():
        runner = EpisodeRunner(engine := Engine())
        runner.submit([ticket(0, samples=1, tokens=5)])
        await settle()
        engine.end("0/0/0", [3, 3, 4, 4, 4])
        return (await runner.finished())[0][0].trajectories[0], runner.usage()

    trajectory, usage = asyncio.run(scenario())
    assert trajectory.version == 3 and trajectory.spans == ((3, 2), (4, 3))
    assert usage.recomputed_tokens == 2 + 2  # prompt and old span
    assert usage.sampled_tokens == 5 and usage.aborted_tokens == 0


def test_seconds_are_those_of_the_cause_and_add_up():
    now = [100.0]

    def later(seconds):
        now[0] += seconds

    async def scenario():
        runner = EpisodeRunner(engine := Engine(), now=lambda: now[0])
        later(1.0)  # idle
        runner.submit([ticket(0)])
        await settle()
        later(2.0)  # generating
        await runner.pause()
        later(4.0)  # paused
        await runner.go_on()
        later(8.0)  # generating
        first = runner.usage()
        runner.hold()
        later(16.0)  # what is inside goes on
        engine.end("0/0/0"), engine.end("0/1/0")
        await settle()
        runner.submit([ticket(1)])
        later(32.0)  # open and kept outside
        await runner.go_on()
        return first, runner.usage(), engine.calls

    first, second, calls = asyncio.run(scenario())
    assert first == Usage(idle_s=1.0, generating_s=10.0, paused_s=4.0)
    assert second == Usage(generating_s=16.0, paused_s=32.0, sampled_tokens=6)
    assert calls == ["pause", "continue_"]


def test_with_a_kept_cache_one_token_after_each_swap_is_compared():
    async def scenario():
        runner = EpisodeRunner(engine := Engine())
        runner.submit([ticket(0, tokens=4)])
        await settle()
        await runner.pause(keep_cache=True)
        await runner.go_on()
        engine.version = 1
        engine.end("0/0/0", [0, 0, 1, 1])
        engine.end("0/1/0", [0, 1, 1, 1])
        await settle()
        again = engine.asked[-1]
        engine.inside.pop(again.id).set_result(
            Answer(
                id=again.id,
                token_T=np.array([again.sampling.seed % 50 + 3], np.int32),
                logp_T=np.array([-1.25], np.float32),
                version_T=np.array([1], np.int32),
                finish="length",
            )
        )
        await settle()
        return engine, again, runner.usage(), runner.usage()

    engine, again, usage, later = asyncio.run(scenario())
    first = engine.asked[0]
    assert len(engine.asked) == 3 and again.sampling.max_response_tokens == 1
    drawn = first.sampling.seed % 50
    assert (
        again.token_ids == (1, 2, drawn, drawn + 1, drawn + 2) and again.sampling.seed == first.sampling.seed
    )
    assert usage.kept_cache_error == 0.25 and later.kept_cache_error is None
    assert usage.recomputed_tokens == 0 and engine.calls == ["pause, keeping the cache", "continue_"]


def test_an_engine_is_idle_once_the_last_comparison_has_ended():
    now = [0.0]

    async def scenario():
        runner = EpisodeRunner(engine := Engine(), now=lambda: now[0])
        runner.submit([ticket(0, samples=1, tokens=2)])
        await settle()
        await runner.pause(keep_cache=True)
        await runner.go_on()
        engine.version = 1
        engine.end("0/0/0", [0, 1])
        await settle()
        now[0] += 2.0  # the comparison is inside
        engine.end_all()
        await settle()
        now[0] += 8.0
        return runner.usage()

    usage = asyncio.run(scenario())
    assert (usage.generating_s, usage.idle_s) == (2.0, 8.0)


def test_each_pause_adds_the_seconds_of_recomputation_since_the_last_one():
    class Telling(Engine):
        spent_s = [0.5, 2.0]

        async def pause(self, *, keep_cache=False):
            return self.spent_s.pop(0)

    async def scenario():
        runner = EpisodeRunner(Telling(), now=lambda: 0.0)
        await runner.pause()
        first = runner.usage().recomputing_s
        await runner.pause()
        return first, runner.usage().recomputing_s, runner.usage().recomputing_s

    assert asyncio.run(scenario()) == (0.5, 1.5, 0.0)


def test_a_runner_that_ends_leaves_nothing_inside_the_engine_and_nobody_waiting():
    async def scenario():
        runner = EpisodeRunner(engine := Engine(), most_requests=3)
        runner.submit([ticket(0), ticket(1)])  # one of four requests waits outside
        waiting = asyncio.create_task(runner.finished())
        await settle()
        await runner.pause()
        await runner.end()
        return engine, await waiting, [task for task in asyncio.all_tasks() if not task.done()]

    engine, found, left = asyncio.run(scenario())
    assert ("abort", ("0/0/0", "0/1/0", "1/0/0")) in engine.calls and not engine.inside
    assert found == ([], None) and len(left) == 1, "the scenario itself"


def test_an_episode_that_does_not_end_is_given_up(monkeypatch):
    monkeypatch.setattr(episodes, "_END_S", 0.01)

    class Deaf(Engine):
        async def abort(self, ids):
            self.calls.append(("abort", tuple(ids)))

    async def scenario():
        runner = EpisodeRunner(Deaf())
        runner.submit([ticket(0)])
        await settle()
        await asyncio.wait_for(runner.end(), 60)
        return [task for task in asyncio.all_tasks() if not task.done()]

    assert len(asyncio.run(scenario())) == 1
