"""The batch that every row of the certificate trains on, made once from the config and a seed.

It has the cases that reveal a wrong loss: long-tailed lengths, a gap in a loss mask, an untrained end, a
trajectory without trained tokens, answers of two policy versions, two minibatches.
Shape letters: N trajectories, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hybridrl.algorithms.needs import Needs
from hybridrl.answer_columns import head_columns
from hybridrl.batch import Batch, Minibatch, RankBatch, TokenBlock
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.controller.advantage import load_credit
from hybridrl.types import Group, Hint, Prompt, Trajectory
from hybridrl.verify.layouts import Row, partition

STEP = 2
NUM_GROUPS = 6
NUM_MINIBATCHES = 2
LONGEST_RESPONSE = 40
_PROMPT_TOKENS = (2, 6)


@dataclass(frozen=True, slots=True)
class RecordedBatch:
    """A batch on the controller, with its tokens."""

    batch: Batch
    block: TokenBlock

    def for_ranks(self, row: Row) -> RankBatch:
        """The batch that the trainer ranks of a row receive."""
        return self.batch.for_ranks(self._minibatches(row)).with_blocks([self.block])

    def _minibatches(self, row: Row) -> list[Minibatch]:
        """The minibatches of a row; each has whole groups, as in a run."""
        batch, size = self.batch, NUM_GROUPS // NUM_MINIBATCHES
        members = [np.flatnonzero(batch.group_N // size == i) for i in range(NUM_MINIBATCHES)]
        return [
            Minibatch(
                index,
                partition(row, rows, batch.length_N),
                num_tokens=int(batch.trained_N[rows].sum()),
                num_sequences=int(np.count_nonzero(batch.trained_N[rows])),
            )
            for index, rows in enumerate(members)
        ]

    @property
    def lengths(self) -> Sequence[int]:
        return self.batch.length_N.tolist()


def make_tokens(vocab_size: int, num_samples: int, seed: int) -> TokenBlock:
    """Random prompts and answers; rollout_logp is 0 until `record` fills it."""
    draw = np.random.default_rng(seed)
    count = NUM_GROUPS * num_samples
    prompts = [
        draw.integers(0, vocab_size, draw.integers(*_PROMPT_TOKENS)).tolist() for _ in range(NUM_GROUPS)
    ]
    lengths = np.minimum(3 + draw.lognormal(1.0, 1.0, count), LONGEST_RESPONSE).astype(int)
    lengths[count // 2] = LONGEST_RESPONSE
    answers = [draw.integers(0, vocab_size, length).tolist() for length in lengths]
    zeros = [[0.0] * len(answer) for answer in answers]
    block = TokenBlock.from_answers([prompts[n // num_samples] for n in range(count)], answers, zeros, 0)
    gap, tail, untrained = block.row(1), block.row(2), block.row(3)
    block.loss_mask_T[gap.stop - 2] = block.loss_mask_T[tail.stop - 1] = False
    block.loss_mask_T[untrained] = False
    for n in range(count):
        block.columns["version"][block.row(n)] = n % STEP
    block.columns["version"][~block.loss_mask_T] = -1
    return block


def record(algorithm: AlgorithmConfig, block: TokenBlock, logp_T: np.ndarray, seed: int) -> RecordedBatch:
    """Make the batch: random rewards, their advantages, and a rollout_logp close to the policy's.

    Args:
        block: result of make_tokens; its rollout_logp is filled.
        logp_T: the policy's own log-probabilities.

    Raises:
        ConfigError: the algorithm is one that a run refuses as well.
    """
    draw = np.random.default_rng([seed, 1])
    noise_T = draw.normal(0.0, 0.05, len(logp_T)).astype(np.float32)
    block.columns["rollout_logp"][:] = np.where(block.loss_mask_T, np.minimum(logp_T + noise_T, 0.0), 0.0)
    if algorithm.observations.coefficient:
        block = replace(block, columns={**block.columns, "observed": _observed(block)})
    if count := Needs.of(algorithm).head_tokens:
        block = replace(block, columns={**block.columns, **_heads(block, count, draw)})
    num_samples = len(block) // NUM_GROUPS
    groups = [_group(block, range(g * num_samples, (g + 1) * num_samples), draw) for g in range(NUM_GROUPS)]
    if algorithm.hint is not None:
        for group in groups:
            group.prompt = replace(group.prompt, hint=_hint(group.prompt))
    batch = Batch.pack(STEP, groups)
    load_credit(algorithm)(batch)
    return RecordedBatch(batch, block)


def _observed(block: TokenBlock) -> np.ndarray:
    """Every other token that is not trained on, as if an environment had written it."""
    observed_T = ~block.loss_mask_T
    observed_T[::2] = False
    return observed_T


def _heads(block: TokenBlock, count: int, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """The likeliest tokens of an engine: neighbouring ids with random probabilities. The sampled one is among
    them in half of the places."""
    trained_U, vocab_size = block.token_T[block.loss_mask_T], int(block.token_T.max()) + 1
    first_U1 = (trained_U - draw.integers(0, 2 * count, len(trained_U)))[:, None]
    head_UK = (first_U1 + np.arange(min(count, vocab_size))) % vocab_size
    p_UK = draw.dirichlet(np.ones(head_UK.shape[1] + 1), len(trained_U))[:, 1:]
    return head_columns([(head_UK.astype(np.int32), np.log(p_UK).astype(np.float32))], block.loss_mask_T)


def _hint(prompt: Prompt) -> Hint:
    """The prompt's tokens in reverse order, after the first one."""
    return Hint(prompt.token_ids[::-1], after=1)


def _group(block: TokenBlock, rows: range, draw: np.random.Generator) -> Group:
    start = int(block.start_N[rows[0]])
    tokens = block.token_T[start : start + int(block.prompt_tokens_N[rows[0]])]
    prompt = Prompt(f"verify/{rows[0]}", tuple(tokens.tolist()), {"v_star": float(draw.random())})
    group = Group(prompt, [_trajectory(block, row, draw) for row in rows], block)
    group.greedy_reward = float(draw.random())
    return group


def _trajectory(block: TokenBlock, row: int, draw: np.random.Generator) -> Trajectory:
    span, prompt_tokens = block.row(row), int(block.prompt_tokens_N[row])
    parts = {"answer": float(draw.integers(0, 3)) / 2, "form": float(draw.random())}
    response_tokens = span.stop - span.start - prompt_tokens
    return Trajectory(
        row=row,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        trained_tokens=int(block.loss_mask_T[span].sum()),
        finish="length" if response_tokens == LONGEST_RESPONSE else "stop",
        version=row % STEP,
        reward=parts["answer"] + 0.1 * parts["form"],
        reward_parts=parts,
    )
