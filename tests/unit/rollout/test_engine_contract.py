"""What rollout/base.py says of every engine, asked of one that is not SGLang; both have all its methods."""

import asyncio
import inspect
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_values import hf_tensors
from swap_workers import LocalGroup, World
from tiny_engine import Tiny
from tiny_engine.engine import TinyEngine
from tiny_engine.models import logp_of

from hybridrl.config.cluster import ClusterConfig
from hybridrl.config.rollout import EngineParallel, RolloutConfig
from hybridrl.errors import ConfigError, EngineError, LayoutError, VersionError
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import spec
from hybridrl.models.tiny import random_model
from hybridrl.reshard.transports import shm
from hybridrl.rollout.base import Engine, EngineKind, EngineSetup, Request, kind_of
from hybridrl.rollout.sglang import SGLang
from hybridrl.rollout.sglang.sizes import SGLangParallel
from hybridrl.rollout.sglang.start import SGLangEngine
from hybridrl.rollout.vllm import VLLM
from hybridrl.rollout.vllm.start import VLLMEngine
from hybridrl.trainer.checkpoints import Keep
from hybridrl.types import Prompt, Sampling
from hybridrl.workers import fallback
from hybridrl.workers.rollout import RayRollout
from hybridrl.workers.sync import RaySync
from hybridrl.workers.trainer import RayTrainer

LONG = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    random_model(folder, "qwen3", 0)
    return folder


def setup(folder, **options):
    given = {"max_prompt_tokens": 16, "max_response_tokens": LONG, "log_path": ""}
    return EngineSetup(model_folder=str(folder), parallel=EngineParallel(), **given | options)


@pytest.fixture
def engine(folder):
    return kind_of("tiny_engine:Tiny").open(setup(folder))


def sampling(**options):
    return Sampling(**{"num_samples": 1, "max_response_tokens": 8, "seed": 5} | options)


def request(id="a", token_ids=(1, 2, 3), arrays=None, **options):
    return Request(id=id, token_ids=token_ids, sampling=sampling(**options), arrays=arrays or {})


def ask(engine, *requests):
    async def scenario():
        return await asyncio.gather(*map(engine.request, requests))

    return asyncio.run(scenario())


async def tokens(count):
    """Until every running request has sampled about so many."""
    for _ in range(count):
        await asyncio.sleep(0)


def largest_difference(answer, prompt, parameters, temperature=1.0):
    expected = logp_of(parameters, [*prompt, *answer.token_T.tolist()], temperature)[len(prompt) :]
    return float(np.abs(answer.logp_T - expected).max())


@pytest.mark.parametrize("kind, engine", [(SGLang, SGLangEngine), (VLLM, VLLMEngine), (Tiny, TinyEngine)])
def test_kinds_and_engines_have_what_the_project_asks_of_them(kind, engine):
    for role, found in ((EngineKind, kind), (Engine, engine)):
        for name, member in vars(role).items():
            if name.startswith("_") or isinstance(member, property):
                continue
            theirs = inspect.signature(getattr(found, name)).parameters.values()
            ours = inspect.signature(member).parameters.values()
            assert [(p.name, p.kind) for p in theirs] == [(p.name, p.kind) for p in ours], name
            assert inspect.iscoroutinefunction(getattr(found, name)) == inspect.iscoroutinefunction(member)
    assert issubclass(kind.parallel, EngineParallel)
    cfg = SimpleNamespace(rollout=RolloutConfig())
    assert kind_of(kind.name).versions(cfg) == pickle.loads(pickle.dumps(kind())).versions(cfg) != {}


def test_the_folder_of_an_engine_is_its_name():
    assert isinstance(kind_of("sglang"), SGLang)
    with pytest.raises(ConfigError, match="use one of sglang, vllm, or module:Name"):
        kind_of("session")


def test_a_request_is_answered_as_the_batched_call_answers_it(engine):
    prompts = [Prompt(str(i), (i, 7, 2 * i), {}) for i in range(1, 6)]
    trajectories, block = asyncio.run(engine.generate(prompts, sampling()))
    found = ask(engine, *(request(p.uid, p.token_ids, seed=5 + i) for i, p in enumerate(prompts)))
    for i, (answer, (trajectory,)) in enumerate(zip(found, trajectories)):
        row = slice(block.row(i).start + len(prompts[i].token_ids), block.row(i).stop)
        assert answer.token_T.tolist() == block.token_T[row].tolist()
        assert np.array_equal(answer.logp_T, block.columns["rollout_logp"][row])
        assert answer.finish == trajectory.finish and set(answer.version_T) == {0}
        assert largest_difference(answer, prompts[i].token_ids, engine.parameters) < 1e-5


@pytest.mark.parametrize("temperature", [0.7, 0.0])
def test_log_probabilities_are_those_of_the_temperature_before_top_p_and_top_k(engine, temperature):
    (answer,) = ask(engine, request(temperature=temperature, top_k=3, top_p=0.9))
    assert largest_difference(answer, (1, 2, 3), engine.parameters, temperature or 1.0) < 1e-5


@pytest.mark.parametrize(
    "wrong", [{"num_samples": 2}, {"arrays": {"pixels": np.zeros(3)}}, {"token_ids": ()}]
)
def test_what_a_request_may_not_ask_is_refused(engine, wrong):
    with pytest.raises(EngineError):
        ask(engine, request(**wrong))
    ask(engine, request())


def test_an_abort_returns_what_was_sampled_and_leaves_other_requests(engine):
    async def scenario():
        running = [asyncio.create_task(engine.request(request(i, max_response_tokens=LONG))) for i in "ab"]
        await tokens(10)
        with pytest.raises(EngineError, match="runs already"):
            await engine.request(request("a"))
        await engine.abort(["a", "nobody"])
        return await asyncio.gather(*running)

    part, whole = asyncio.run(scenario())
    assert part.finish == "abort" and whole.finish != "abort" and len(part.token_T) < len(whole.token_T)
    assert part.token_T.tolist() == whole.token_T[: len(part.token_T)].tolist()
    (again,) = ask(engine, request("a", max_response_tokens=LONG))
    assert again.token_T.tolist() == whole.token_T.tolist()


def test_a_paused_engine_samples_nothing_takes_requests_and_goes_on(engine):
    (alone,) = ask(engine, request(max_response_tokens=LONG))

    async def scenario():
        before = asyncio.create_task(engine.request(request("before", max_response_tokens=LONG)))
        await tokens(10)
        await engine.pause()
        during = asyncio.create_task(engine.request(request("during", max_response_tokens=LONG)))
        dropped = asyncio.create_task(engine.request(request("dropped")))
        await asyncio.sleep(0.05)
        assert not before.done() and not during.done()
        await engine.abort(["dropped"])
        assert (await dropped).token_T.tolist() == []
        await engine.continue_()
        return await asyncio.gather(before, during)

    for answer in asyncio.run(scenario()):
        assert answer.token_T.tolist() == alone.token_T.tolist()
        assert np.array_equal(answer.logp_T, alone.logp_T)


def test_weights_swapped_in_a_pause_leave_each_token_the_probability_of_its_version(engine):
    old = {name: tensor.clone() for name, tensor in engine.parameters.items()}
    (exported,) = engine.export_parameters()

    async def scenario():
        running = asyncio.create_task(engine.request(request(max_response_tokens=LONG, temperature=3.0)))
        await tokens(10)
        await engine.pause()
        await engine.begin_swap(1)
        for call in (engine.continue_(), engine.request(request("new"))):
            with pytest.raises(EngineError, match="dirty"):
                await call
        for handle in exported.values():
            shm.attach(handle).mul_(2.0)
        with pytest.raises(VersionError):
            await engine.commit_swap(2)
        await engine.commit_swap(1)
        await engine.continue_()
        return await running

    answer = asyncio.run(scenario())
    expected = [logp_of(p, [1, 2, 3, *answer.token_T.tolist()], 3.0)[3:] for p in (old, engine.parameters)]
    versions = answer.version_T.tolist()
    assert versions == sorted(versions) and set(versions) == {0, 1}
    assert np.abs(answer.logp_T - np.choose(answer.version_T, expected)).max() < 1e-5


def test_a_swap_without_a_pause_waits_for_requests(engine):
    async def scenario():
        running = asyncio.create_task(engine.request(request(max_response_tokens=LONG)))
        await asyncio.sleep(0)
        await engine.begin_swap(1)
        assert running.done()
        await engine.commit_swap(1)
        return await running

    answer = asyncio.run(scenario())
    assert answer.finish != "abort" and set(answer.version_T) == {0}


def test_a_cache_that_was_given_back_is_there_again_after_a_commit(engine):
    async def scenario():
        await engine.release_cache()
        with pytest.raises(EngineError):
            await engine.request(request())
        await engine.resume_cache()
        await engine.request(request())
        await engine.release_cache()
        await engine.begin_swap(1)
        await engine.commit_swap(1)
        await engine.request(request())

    asyncio.run(scenario())


def test_the_probe_tells_the_engines_layout_from_another_and_leaves_no_trace(engine):
    before = asyncio.run(engine.checksums())
    assert asyncio.run(engine.probe_loader(engine.layout)) is None
    other = MegatronLayout(engine.layout.spec)
    assert isinstance(asyncio.run(engine.probe_loader(other)), LayoutError)
    assert asyncio.run(engine.checksums()) == before


def test_the_projects_swap_brings_two_trainer_ranks_weights_into_another_kind_of_engine(folder):
    """In place, after the probe of the loader: ranks of tp 2 write, checksums are compared, engines serve."""
    model, kind = spec.read(folder), Tiny()
    world = World(MegatronLayout(model, tp=2), [])
    ranks = [kind_class(*arguments) for kind_class, arguments in map(world.writer, range(2))]
    engines = LocalGroup("engine", [kind.open(setup(folder, version=None)) for _ in range(2)])
    cluster, layout = ClusterConfig(), kind.layout(model, EngineParallel())
    trainer, rollout = (
        RayTrainer(LocalGroup("trainer", ranks), cluster, None, Keep(1)),
        RayRollout(engines, cluster),
    )

    async def scenario():
        with pytest.raises(EngineError, match="must not serve"):
            await engines.actors[0].request(request())
        sync = await fallback.connect("auto", trainer, rollout, layout, cluster, lambda *text: None)
        assert isinstance(sync, RaySync)
        for rank in ranks:
            rank.load(2)
        return await sync.push(2), [await engine.request(request()) for engine in engines.actors]

    report, answers = asyncio.run(scenario())
    assert report.checksums_equal and report.num_tensors == 2 * len(layout.shards(0))
    weights = {name: tensor * 3 for name, tensor in hf_tensors(model).items()}
    for answer in answers:
        assert set(answer.version_T) == {2}
        assert largest_difference(answer, (1, 2, 3), weights) < 1e-5
    for engine in engines.actors:
        assert all(torch.equal(engine.parameters[name], weights[name]) for name in engine.parameters)


@pytest.mark.parametrize("tp, ep", [(1, 1), (4, 2)])
def test_sizes_of_sglang_make_its_layout(folder, tp, ep):
    sizes = SGLangParallel(tp=tp, dp_attention=ep)
    layout = SGLang().layout(spec.read(folder), sizes)
    assert (layout.tp, layout.dp_attention, layout.world_size) == (tp, ep, tp)
    assert sizes.attention_copies == ep
