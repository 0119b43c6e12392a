"""Episodes of several turns on the real engine: probabilities of every turn, the cache, ends by text."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from engine_values import TOLERANCE, model, prompts, setup
from turn_values import Talk, Words

from hybridrl.data.tokenize import load_tokenizer
from hybridrl.models.tiny import random_model
from hybridrl.rollout.base import Request
from hybridrl.rollout.episodes import EpisodeRunner
from hybridrl.rollout.groups import Ticket
from hybridrl.rollout.sglang.start import SGLangEngine
from hybridrl.rollout.turns import TurnPlayer
from hybridrl.seeds import group_seed
from hybridrl.types import GroupTask, Sampling

TURNS, TOKENS, GROUPS, SAMPLES = 4, 24, 4, 3

Rows = dict[tuple[int, int], tuple[list[int], np.ndarray, np.ndarray]]
"""(index of the prompt, sample) -> tokens, loss mask, log-probabilities."""


class EndlessWords(Words):
    """No token ends an answer, so all answers are truncated."""

    stop_token_ids = (2,)

    def more(self, history, answer, messages, tools):
        return [2, *self.begin(messages, tools)]


@pytest.fixture(scope="module")
def policy():
    return model(1, max_position_embeddings=512)


@pytest.fixture(scope="module")
def engine(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    policy.save_pretrained(folder)
    engine = SGLangEngine(setup(folder, max_prompt_tokens=300, max_response_tokens=TOKENS))
    yield engine
    engine.shutdown()


def tickets(first: int = 0) -> list[Ticket]:
    made = []
    for i, prompt in enumerate(prompts(GROUPS, length=70)):
        row = {"question": list(prompt.token_ids)}
        task = GroupTask(
            index=i,
            prompt=type(prompt)(prompt.uid, prompt.token_ids, row),
            sampling=Sampling(
                num_samples=SAMPLES, max_response_tokens=TOKENS, temperature=1.5, seed=group_seed(7, i)
            ),
        )
        made.append(Ticket(first + i, task))
    return made


def runner_of(engine: SGLangEngine) -> EpisodeRunner:
    player = TurnPlayer(
        Talk(max_turns=TURNS),
        EndlessWords(),
        lambda row: [{"role": "user", "content": row["question"]}],
        max_context_tokens=300,
    )
    return EpisodeRunner(engine, player=player)


async def finished(runner: EpisodeRunner, chosen: Sequence[Ticket]) -> Rows:
    index_of, found = {ticket.number: ticket.task.index for ticket in chosen}, {}
    while len(found) < SAMPLES * len(chosen):
        groups, block = await runner.finished()
        assert block is not None
        for group in groups:
            if group.ticket not in index_of:  # it had ended before it was cancelled
                continue
            for trajectory in group.trajectories:
                row = block.row(trajectory.row)
                found[index_of[group.ticket], trajectory.episode] = (
                    block.token_T[row].tolist(),
                    block.loss_mask_T[row],
                    block.columns["rollout_logp"][row],
                )
    return found


async def played(engine: SGLangEngine) -> tuple[Rows, dict[str, float]]:
    runner, chosen = runner_of(engine), tickets()
    runner.submit(chosen)
    rows = await finished(runner, chosen)
    return rows, dict(runner.usage().sums)


async def interrupted(engine: SGLangEngine) -> Rows:
    """With pauses that drop the cache, and a group that is ended and submitted again."""
    runner, chosen = runner_of(engine), tickets()
    runner.submit(chosen)
    for _ in range(3):
        await asyncio.sleep(0.05)
        await runner.pause()
        await runner.cancel([1])
        await runner.go_on()
    again = tickets(10)[1:2]
    runner.submit(again)
    return await finished(runner, [*(t for t in chosen if t.number != 1), *again])


def plain_logp(policy, tokens: list[int], temperature: float) -> np.ndarray:
    with torch.no_grad():
        logits = policy(torch.tensor([tokens])).logits[0] / temperature
    logp = logits[:-1].log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    return np.concatenate([[0.0], logp.numpy()])


def test_every_trained_token_of_every_turn_has_its_probability(engine, policy):
    rows, sums = asyncio.run(played(engine))
    assert len(rows) == GROUPS * SAMPLES
    for tokens, mask, logp in rows.values():
        starts = np.flatnonzero(mask & ~np.roll(mask, 1))
        assert len(starts) == TURNS
        assert np.abs(logp - plain_logp(policy, tokens, 1.5))[mask].max() < TOLERANCE
    assert sums["cached"] / sums["cacheable"] > 0.85


def test_episodes_that_are_paused_or_played_again_have_the_same_tokens(engine):
    whole, _ = asyncio.run(played(engine))
    again = asyncio.run(interrupted(engine))
    assert whole.keys() == again.keys()
    for name, (tokens, _, logp) in whole.items():
        assert again[name][0] == tokens, name
        assert np.abs(again[name][2] - logp).max() < TOLERANCE


def test_a_text_ends_an_answer_and_is_part_of_it(tmp_path):
    random_model(tmp_path / "m", "qwen3", 0)
    tokenizer = load_tokenizer(str(tmp_path / "m"))
    engine = SGLangEngine(setup(tmp_path / "m", log_path=str(tmp_path / "log")))

    async def ask(name: str, stop: tuple[str, ...]):
        sampling = Sampling(num_samples=1, max_response_tokens=30, seed=5, stop=stop, temperature=2.0)
        return await engine.request(Request(id=name, token_ids=(70, 71, 72), sampling=sampling))

    try:
        whole = asyncio.run(ask("whole", ()))
        tokens = whole.token_T.tolist()
        text = tokenizer.hf.decode(tokens[10:12])
        cut = asyncio.run(ask("cut", (text,)))
    finally:
        engine.shutdown()
    found = cut.token_T.tolist()
    assert cut.finish == "stop" and len(found) <= 12 and found == tokens[: len(found)]
    assert tokenizer.hf.decode(found).endswith(text)
    assert cut.logp_T.tolist() == pytest.approx(whole.logp_T.tolist()[: len(found)], abs=TOLERANCE)
