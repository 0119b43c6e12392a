"""What an engine's worker opens for a run with an environment, on real processes and a real tokenizer."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from hybridrl.config.load import load
from hybridrl.data.tokenize import load_tokenizer
from hybridrl.models.tiny import qwen3_arithmetic
from hybridrl.rollout.base import Answer
from hybridrl.types import Prompt
from hybridrl.workers.turns import TurnSetup

TEXT = """\
model: {folder}
data: {{train: d.jsonl, chat_template: none}}
reward: none
environment: {{name: guess, max_turns: 4}}
rollout: {{max_prompt_tokens: 8, max_response_tokens: 2, max_context_tokens: 24}}
evaluate: {{max_turns: 2}}
run: {{name: r}}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("run")
    qwen3_arithmetic(folder / "model", 0)
    (folder / "my.yaml").write_text(TEXT.format(folder=folder / "model"))
    return load(folder / "my.yaml", []).config


def answers_of(tokenizer, *texts):
    said = iter(texts)

    async def ask(token_ids, *, turn=0, most=None, stop_token_ids=()):
        ids = [*tokenizer.encode([next(said)], add_special_tokens=False)[0], tokenizer.stop_token_ids[0]]
        return Answer(
            id=str(turn),
            token_T=np.array(ids, np.int32),
            logp_T=np.zeros(len(ids), np.float32),
            version_T=np.zeros(len(ids), np.int32),
            finish="stop",
        )

    return ask


def play(config, *said, heldout=False):
    tokenizer = load_tokenizer(config.model.path)

    async def scenario():
        setup = TurnSetup.of(config)
        assert setup is not None
        environments, player = await setup.open()
        try:
            prompt = Prompt("train/0", (12,), {"prompt": "=", "answer": "6"})
            ask = answers_of(tokenizer, *said)
            return await player.play(prompt, 3, ask, heldout=heldout)
        finally:
            await environments.close()

    outcome = asyncio.run(scenario())
    (stream,) = outcome.played.streams
    return outcome, tokenizer.hf.decode(stream.tokens[: stream.length]), stream


def test_a_game_is_played_through_its_process(config):
    outcome, text, stream = play(config, "4", "8", "6")
    assert text == "=4<eos>+8<eos>-6<eos>"
    assert outcome.played.ended == "done" and outcome.sums["environment/guess/solved"] == 1.0
    assert [turn.reward > 0 for turn in stream.turns] == [True] * 3 and stream.turns[-1].reward >= 1.0


def test_a_held_out_episode_has_budgets_of_its_own(config):
    outcome, text, _ = play(config, "4", "8", "6", heldout=True)
    assert outcome.played.ended == "max_turns" and text == "=4<eos>+8<eos>"
    assert outcome.reported["solved"] == 0.0


def test_without_an_environment_there_is_nothing_to_open(config):
    assert TurnSetup.of(config.model_copy(update={"environment": None})) is None
