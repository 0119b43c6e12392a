"""Weights swapped under running requests: every token has the probability of the version that it names."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import engine_values
import numpy as np
import pytest
import torch
from engine_kinds import TESTED, KindCase
from engine_values import TOLERANCE, hf_logp, model, prompts, shard

from hybridrl.batch import TokenBlock
from hybridrl.layout.megatron import MegatronLayout
from hybridrl.models import spec
from hybridrl.reshard.agreement import difference, expected
from hybridrl.reshard.swap import SwapWriter
from hybridrl.rollout.episodes import EpisodeRunner
from hybridrl.rollout.groups import FinishedGroup, Ticket
from hybridrl.rollout.process import EngineProcess
from hybridrl.rollout.sglang import start as sglang_start
from hybridrl.rollout.vllm import start as vllm_start
from hybridrl.types import GroupTask, Sampling, Usage

TOKENS, SWAPS, GROUPS = 300, 3, 4
SAMPLING = Sampling(num_samples=3, max_response_tokens=TOKENS, temperature=2.0, seed=5)
SUPPORT = Path(__file__).parents[1] / "support"
FORGETFUL = {
    "sglang": (sglang_start, "host_without_flush"),
    "vllm": (vllm_start, "vllm_host_without_flush"),
}
"""Kind of engine -> the module that starts its host, and a host that forgets to empty its caches."""

SHARED_PROMPT = 70
"""Tokens: long enough that prompts are cached."""

Models = Sequence[tuple[Any, Path]]


def mixture(seed: int) -> Any:
    return engine_values.mixture(seed, head_dim=16, max_position_embeddings=1024, eos_token_id=None)


def dense(seed: int) -> Any:
    """Its gate and up projections are large enough for hosts/matmul.py to pack them on a CPU."""
    made = model(seed, eos_token_id=None, max_position_embeddings=1024, head_dim=32, intermediate_size=2100)
    for layer in made.model.layers:
        layer.mlp.down_proj.weight.data *= 0.2
    return made


def two_models(make: Callable[[int], Any], folder: Path) -> Models:
    """Two unrelated models and the folders they are in."""
    found = [(make(seed), folder / str(seed)) for seed in (1, 2)]
    for made, path in found:
        made.save_pretrained(path)
    return found


@dataclass(frozen=True)
class Streamed:
    groups: list[FinishedGroup]
    blocks: list[tuple[TokenBlock, list[FinishedGroup]]]
    usage: Usage

    def rows(self):
        """(trajectory, tokens, log-probabilities, versions, prompt length) of every answer."""
        for block, groups in self.blocks:
            for trajectory in (t for group in groups for t in group.trajectories):
                row = block.row(trajectory.row)
                columns = block.columns
                yield (
                    trajectory,
                    block.token_T[row].tolist(),
                    columns["rollout_logp"][row],
                    columns["version"][row],
                    columns["experts"][row] if "experts" in columns else None,
                )


class Swaps:
    """Writes the models' weights into an engine in turn, as a trainer rank does."""

    def __init__(self, kind: KindCase, engine: EngineProcess, models: Models) -> None:
        source, exported = MegatronLayout(spec.read(models[0][1])), engine.export_parameters()
        self._writer = SwapWriter(source, 0, [(kind.layout(source.spec, tp=len(exported)), exported)])
        self._tensors = [shard(source, 0, folder) for _, folder in models]

    async def write(self, engine: EngineProcess, version: int) -> None:
        written = self._writer.write(self._tensors[version % 2])
        held = {(0, r, n): c for r, sums in enumerate(await engine.checksums()) for n, c in sums.items()}
        assert difference(expected([written.checksums]), held) is None


async def stream(kind: KindCase, engine: EngineProcess, models: Models, keep_cache: bool) -> Streamed:
    """Groups that are answered while weights are swapped several times."""
    runner, swaps = EpisodeRunner(engine, most_requests=8), Swaps(kind, engine, models)
    tasks = [
        GroupTask(index=i, prompt=prompt, sampling=replace(SAMPLING, seed=100 + i))
        for i, prompt in enumerate(prompts(GROUPS, length=SHARED_PROMPT))
    ]
    runner.submit([Ticket(task.index, task) for task in tasks])
    blocks: list[tuple[TokenBlock, list[FinishedGroup]]] = []

    async def collect() -> None:
        while (found := await runner.finished())[0]:
            assert found[1] is not None
            blocks.append((found[1], found[0]))

    collecting = asyncio.create_task(collect())
    for _ in range(SWAPS):
        await asyncio.sleep(0.3)
        version = (engine.session.version or 0) + 1
        await runner.pause(keep_cache=keep_cache)
        await engine.begin_swap(version)
        await swaps.write(engine, version)
        await engine.commit_swap(version)
        await runner.go_on()
    await asyncio.wait_for(collecting, 60)
    return Streamed([group for _, groups in blocks for group in groups], blocks, runner.usage())


def largest_difference(streamed: Streamed, models: Models, temperature: float) -> float:
    """Between the engine's log-probabilities and those of the model that each token's version names."""
    found = 0.0
    for _, tokens, logp, versions, _ in streamed.rows():
        for version in set(versions.tolist()) - {-1}:
            theirs = hf_logp(models[version % 2][0], tokens, temperature).numpy()
            found = max(found, float(np.abs(logp - theirs)[versions == version].max()))
    return found


def played(kind: KindCase, models: Models, tp: int = 1, keep_cache: bool = False, **options: Any) -> Streamed:
    given = {"max_prompt_tokens": SHARED_PROMPT, "max_response_tokens": TOKENS, **options}
    engine = kind.engine(models[0][1], tp=tp, **given)
    try:
        return asyncio.run(stream(kind, engine, models, keep_cache))
    finally:
        engine.shutdown()


def neighbours(seed: int) -> Any:
    """Models that differ as little as an optimizer step changes them."""
    made = dense(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            parameter += (seed - 1) * 1e-3 * torch.randn(parameter.shape, generator=generator)
    return made


@pytest.fixture(scope="module")
def dense_models(tmp_path_factory):
    return two_models(dense, tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory):
    return two_models(mixture, tmp_path_factory.mktemp("mixture"))


def assert_swapped_in_flight(streamed: Streamed, models: Models) -> None:
    rows = list(streamed.rows())
    assert sorted(g.ticket for g in streamed.groups) == list(range(GROUPS)) and len(rows) == GROUPS * 3
    mixed = [trajectory for trajectory, *_ in rows if len(trajectory.spans) > 1]
    assert len(mixed) >= len(rows) // 3
    for trajectory, _, _, versions, _ in rows:
        sampled = versions[trajectory.prompt_tokens :]
        assert (np.diff(sampled) >= 0).all() and sampled[0] == trajectory.version
        spans = trajectory.spans or ((trajectory.version, trajectory.response_tokens),)
        assert spans == tuple((v, int((sampled == v).sum())) for v in sorted(set(sampled.tolist())))
    assert largest_difference(streamed, models, SAMPLING.temperature) < TOLERANCE
    assert streamed.usage.sampled_tokens == GROUPS * 3 * TOKENS
    assert streamed.usage.recomputed_tokens >= len(mixed) * SHARED_PROMPT
    assert streamed.usage.recomputing_s <= streamed.usage.generating_s


@pytest.mark.parametrize("tp", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_token_has_the_probability_of_its_version(kind, dense_models, tp):
    assert_swapped_in_flight(played(kind, dense_models, tp=tp), dense_models)


@pytest.mark.slow
def test_without_the_flush_it_has_not(kind, dense_models, monkeypatch):
    """The prompts stay cached as the old weights computed them."""
    start, host = FORGETFUL[kind.kind.name]
    program = partial(start.HostProgram, module=host)
    monkeypatch.setattr(start, "HostProgram", lambda module, **given: program(**given))
    monkeypatch.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep)
    assert largest_difference(played(kind, dense_models), dense_models, SAMPLING.temperature) > 0.1


def shares_of_experts(streamed: Streamed, models: Models) -> tuple[float, float]:
    """Of the tokens that older weights sampled in a mixed answer: the share whose experts are those that the
    weights of their own version choose, and the share whose experts are those of the newest version."""
    of_own, of_newest = [], []
    for trajectory, tokens, _, versions, experts in streamed.rows():
        chosen = {}
        for version, _ in trajectory.spans:
            with torch.no_grad():
                found = models[version % 2][0](torch.tensor([tokens]), output_router_logits=True)
            layers = [layer.topk(2).indices for layer in found.router_logits]
            chosen[version] = torch.stack(layers).sort().values.transpose(0, 1).numpy()
        newest = max(chosen, default=0)
        assert experts is not None
        for place in range(trajectory.prompt_tokens + 1, len(tokens)):
            if chosen and versions[place] % 2 != newest % 2 and versions[place - 1] == versions[place]:
                used = np.sort(experts[place - 1], axis=-1)
                of_own.append((used == chosen[versions[place]][place - 1]).all())
                of_newest.append((used == chosen[newest][place - 1]).all())
    assert of_own
    return float(np.mean(of_own)), float(np.mean(of_newest))


@pytest.mark.slow
def test_after_a_retraction_an_answer_names_the_experts_of_the_newest_weights(mixtures):
    """So the experts of older tokens are not those that sampled them, and router replay is refused."""
    streamed = played(TESTED["sglang"], mixtures, returns_experts=True)
    assert_swapped_in_flight(streamed, mixtures)
    of_own, of_newest = shares_of_experts(streamed, mixtures)
    assert of_newest > 0.99 > 0.5 > of_own


@pytest.mark.slow
def test_a_kept_cache_shows_its_error(tmp_path):
    """Of the last tokens that were compared, none is further off than the furthest of all."""
    models = two_models(neighbours, tmp_path)
    streamed = played(TESTED["sglang"], models, keep_cache=True)
    found, shown = largest_difference(streamed, models, SAMPLING.temperature), streamed.usage.kept_cache_error
    assert shown is not None and TOLERANCE < found < 0.5
    assert 1e-6 < shown <= found + TOLERANCE
    assert streamed.usage.recomputed_tokens == 0
