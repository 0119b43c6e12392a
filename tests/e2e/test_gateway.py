"""Programs that talk to the endpoint of a real engine: every trained token of every branch has its
probability, and every sampled token is trained on once."""

import asyncio
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_values import TOLERANCE, setup
from transformers import AutoModelForCausalLM

from hybridrl.config.schema import DataConfig
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.dialogue.opened import open_dialogue
from hybridrl.gateway.conversation import Limits
from hybridrl.gateway.player import ProgramPlayer
from hybridrl.gateway.program import Programs, ProgramSetup
from hybridrl.gateway.server import Gateway, ServerSetup
from hybridrl.models.tiny import random_model
from hybridrl.rollout.episodes import EpisodeRunner
from hybridrl.rollout.groups import Ticket
from hybridrl.rollout.sglang.start import SGLangEngine
from hybridrl.seeds import group_seed
from hybridrl.types import GroupTask, Prompt, Sampling

AGENTS = Path(__file__).parents[1] / "support" / "gateway_agents.py"
KINDS = ("plain", "compacts", "retries", "rewinds", "anthropic")
SAMPLES, TOKENS, CONTEXT = 12, 16, 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "qwen3"
    random_model(folder, "qwen3", 3, vocab_size=263)
    return folder


@pytest.fixture(scope="module")
def engine(folder):
    engine = SGLangEngine(setup(folder, max_prompt_tokens=CONTEXT - TOKENS, max_response_tokens=TOKENS))
    yield engine
    engine.shutdown()


async def played(engine, folder):
    """The groups of all kinds of agents, 60 episodes at the same time, their block, and what was counted."""
    tokenizer, gateway = load_tokenizer(str(folder)), Gateway(ServerSetup())
    data = DataConfig.model_validate({"train": "absent.jsonl"})
    await gateway.start()
    command = (sys.executable, str(AGENTS))
    programs = Programs(ProgramSetup(command, dict(os.environ), None, episodes_per_process=64))
    player = ProgramPlayer(
        gateway,
        programs,
        open_dialogue(tokenizer, str(folder), data),
        lambda row: [{"role": "user", "content": row["question"]}],
        Limits(CONTEXT, 8),
        timeout_s=600,
        max_sessions=512,
    )
    runner = EpisodeRunner(engine, player=player)
    for i, kind in enumerate(KINDS):
        sampling = Sampling(num_samples=SAMPLES, max_response_tokens=TOKENS, seed=group_seed(1, i))
        prompt = Prompt(f"train/{i}", (1,), {"question": f"question {i}", "kind": kind})
        runner.submit([Ticket(i, GroupTask(index=i, prompt=prompt, sampling=sampling))])
    try:
        found = []
        while len(found) < len(KINDS):
            groups, block = await runner.finished()
            assert block is not None
            found += [(KINDS[group.ticket], group, block) for group in groups]
        return found, runner.usage()
    finally:
        await programs.close()
        await gateway.close()


@pytest.mark.slow
def test_sixty_programs_at_once_are_trained_on_what_the_engine_sampled(engine, folder):
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found, usage = asyncio.run(played(engine, folder))
    trained = 0
    for kind, group, block in found:
        assert not group.failures, (kind, group.failures)
        branches = 2 if kind in ("compacts", "rewinds") else 1
        assert len(group.trajectories) == SAMPLES * branches, kind
        assert len({t.episode for t in group.trajectories}) == SAMPLES
        for trajectory in group.trajectories:
            row = block.row(trajectory.row)
            tokens, mask = block.token_T[row], block.loss_mask_T[row]
            gap = np.abs(block.columns["rollout_logp"][row] - plain_logp(policy, tokens))[mask]
            assert gap.max() < TOLERANCE, (kind, gap.max())
            assert trajectory.turn_reward == 1.0 and trajectory.ended == "done"
            trained += int(mask.sum())
    assert trained == usage.sampled_tokens and usage.aborted_tokens == 0
    sums = usage.sums
    assert sums["gateway/requests"] == SAMPLES * (3 * len(KINDS) + 2)
    assert sums["gateway/branches/rewound"] == SAMPLES and sums["gateway/branches/new"] == SAMPLES
    assert sums["gateway/repeated"] > 0  # by those that gave up early


def plain_logp(policy, tokens):
    ids = torch.tensor(tokens.tolist())
    with torch.no_grad():
        logits = policy(ids[None]).logits[0]
    logp = logits[:-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return np.concatenate([[0.0], logp.numpy()])
