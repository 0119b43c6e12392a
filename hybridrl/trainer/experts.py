"""Which experts a token goes to: scores, choices, penalties, and choices that are kept for later passes.

Sources: DeepSeek-AI 2024, "DeepSeek-V2", arXiv:2405.04434, section 2.1.3 (groups), and "DeepSeek-V3",
arXiv:2412.19437, section 2.1.2 (sigmoid scores, and a bias that affects the choice but not the weights).
Shape letters: T packed tokens, N tokens that this rank routes (T / tp with sequence parallelism), E experts
of a layer, K experts chosen for a token, G groups of experts, B tokens of all blocks of a batch, S sequences
of a microbatch, L layers of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hybridrl.batch import TokenBlock
from hybridrl.errors import ConfigError
from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.places import Packing


@dataclass(frozen=True, slots=True)
class Penalties:
    """Weights of the auxiliary losses of a router. Each loss is a sum over the sequences of a microbatch."""

    balance: float = 0.0
    """Weight of DeepSeek-V3's sequence-wise balance loss: it penalises experts used often in a sequence."""

    z: float = 0.0
    """Weight of the z-loss: squared log of the sum of exp(logits), mean over a sequence (ST-MoE,
    arXiv:2202.08906, 2.2)."""


class Choices:
    """The trainer's expert choices for the tokens of a batch on one layer, recorded once, then replayed."""

    def __init__(self, num_tokens: int, num_chosen: int, device: torch.device) -> None:
        self._expert_BK = torch.full((num_tokens, num_chosen), -1, dtype=torch.int16, device=device)
        self._complete = False

    def settle(self, source_N: Tensor, chosen_NK: Tensor, copies_CN: Sequence[Tensor] = ()) -> Tensor:
        """The experts to use. Until `complete` is called, the chosen ones are recorded and returned.

        After that the recorded ones are returned. Filler, and tokens without a record, always use the chosen
        ones.

        Args:
            copies_CN: where the choices are recorded besides source_N, as copies_of_tokens says.
        """
        if not self._complete:
            for index_N in (source_N, *copies_CN):
                real_N = index_N >= 0
                self._expert_BK[index_N[real_N]] = chosen_NK[real_N].to(torch.int16)
            return chosen_NK
        kept_NK = self._expert_BK[source_N.clamp(min=0)].long()
        return torch.where((source_N >= 0).unsqueeze(1) & (kept_NK >= 0), kept_NK, chosen_NK)

    def complete(self, group: dist.ProcessGroup | None) -> None:
        """Stop recording. With a group this is *collective*, and its ranks exchange what they recorded."""
        self._complete = True
        if group is not None:
            whole_BK = self._expert_BK.int()  # gloo has no shorter integers
            dist.all_reduce(whole_BK, dist.ReduceOp.MAX, group)
            self._expert_BK.copy_(whole_BK)


class EngineExperts:
    """The engine's expert choices for the tokens of a batch, on all layers."""

    def __init__(self, blocks: Sequence[TokenBlock]) -> None:
        """
        Raises:
            ConfigError: a block has no column experts.
        """
        found = [block.columns["experts"] for block in blocks if "experts" in block.columns]
        if len(found) < len(blocks):
            raise ConfigError(
                "these answers do not say which experts the engine sent their tokens to",
                where="actor.moe.router_replay",
                fix="actor.moe.router_replay=old_logp",
            )
        self._blocks, self._first_token = found, np.cumsum([0, *map(len, found)])
        self._seen: tuple[Packing, Tensor] | None = None

    def of(self, packing: Packing) -> Tensor:
        """Experts of the tokens of a microbatch, int16 [T, L, K], on the tokens' device; -1 if unknown."""
        if self._seen is None or self._seen[0] is not packing:
            self._seen = packing, self._gathered(packing.source_T)
        return self._seen[1]

    def _gathered(self, source_T: Tensor) -> Tensor:
        """Experts of some tokens, int16 [T, L, K]. Only these are copied out of the shared object store."""
        from_T = source_T.cpu().numpy()
        block_T = np.searchsorted(self._first_token, from_T, side="right") - 1  # -1: filler
        expert_TLK = np.full((len(from_T), *self._blocks[0].shape[1:]), -1, np.int16)
        for number, (block, first) in enumerate(zip(self._blocks, self._first_token, strict=False)):
            at = np.flatnonzero(block_T == number)
            expert = block[from_T[at] - first].astype(np.int16)
            expert_TLK[at] = np.where(expert == np.iinfo(block.dtype).max, np.int16(-1), expert)
        return torch.from_numpy(expert_TLK).to(source_T.device)


class EngineChoices:
    """Replays the engine's choices for the tokens of a batch on one layer."""

    def __init__(self, experts: EngineExperts, router: "RouterOfTokens", layer: int) -> None:
        self._experts, self._router, self._layer = experts, router, layer
        self.count_2 = torch.zeros(2, dtype=torch.float64)
        """Number of tokens for which router and engine differ, and of all tokens that were compared."""

    def settle(self, source_N: Tensor, chosen_NK: Tensor, copies_CN: Sequence[Tensor] = ()) -> Tensor:
        """The experts to use: the engine's choice, or the router's for filler and tokens the engine did not
        run."""
        kept_NK = self._router.own(self._experts.of(self._router.packing)[:, self._layer]).long()
        known_N = kept_NK.amin(1) >= 0
        differs_N = (kept_NK.sort(1).values != chosen_NK.sort(1).values).any(1) & known_N
        self.count_2 += torch.stack([differs_N.sum(), known_N.sum()]).cpu()
        return torch.where(known_N.unsqueeze(1), kept_NK, chosen_NK)


class RouterOfTokens(Protocol):
    """A router of one layer on this rank, as `Routing` controls it."""

    packing: Packing
    """Packing of the present microbatch."""

    layer_number: int
    """Number of the layer in the whole model, from 1."""

    topk: int
    choices: "Choices | EngineChoices | None"
    penalties: Penalties
    count_E: Tensor
    """Tokens that went to each expert in passes with gradients."""

    penalty: Tensor
    """Sum of the auxiliary losses in passes with gradients."""

    @property
    def weight(self) -> Tensor:
        """[E, hidden size]"""
        ...

    def own(self, value_T: Tensor) -> Tensor:
        """The part of a tensor over T that this rank routes."""
        ...

    def count_from_zero(self) -> None: ...


def copies_of_tokens(packing: Packing, context_size: int) -> Sequence[Tensor]:
    """Places of the tokens of shared prompts in the trajectories of further answers, among the tokens of
    all blocks: int64 [T] for the second answer of each prompt, for the third and so on; -1 for other tokens.

    Args:
        context_size: number of context-parallel ranks that share every sequence.
    """
    most = max((len(one.first) for one in packing.shared), default=1)
    found = [torch.full_like(packing.source_T, -1) for _ in range(most - 1)]
    at = 0
    for one in packing.shared:
        prompt = slice(at, at + one.sequences[0] // context_size)
        real = packing.source_T[prompt] >= 0
        for copies, first in zip(found, one.first[1:], strict=False):
            copies[prompt] = torch.where(real, first + packing.position_T[prompt], -1)
        at += one.num_tokens // context_size
    return found


@dataclass(frozen=True, slots=True)
class Parts:
    """Which packed sequences a trajectory of a microbatch consists of: one, or a shared prompt and its own.

    Shape letters: G packed sequences, M pairs of a trajectory and a part of it.
    """

    of_T: Tensor
    """int64: packed sequence of each token of this rank."""

    seq_M: Tensor
    part_M: Tensor
    """int64: trajectory and packed sequence of each pair."""

    @classmethod
    def of(cls, packing: Packing, context_size: int) -> "Parts":
        """
        Args:
            context_size: number of context-parallel ranks that share every sequence.
        """
        lengths: list[int] = []
        pairs: list[tuple[int, int]] = []
        count = 0
        for one in packing.shared:
            prompt, answers = len(lengths), len(one.first)
            pairs += [(count + n, part) for n in range(answers) for part in (prompt, prompt + 1 + n)]
            lengths += one.sequences
            count += answers
        whole = [length for number, length in packing.runs for _ in range(number)]
        pairs += [(count + n, len(lengths) + n) for n in range(len(whole))]
        own_G = torch.tensor([*lengths, *whole]) // context_size
        of_T = torch.repeat_interleave(torch.arange(len(own_G)), own_G)
        seq_M, part_M = torch.tensor(pairs).unbind(1)
        device = packing.source_T.device
        return cls(of_T.to(device), seq_M.to(device), part_M.to(device))

    def in_trajectories(self, value_G: Tensor) -> Tensor:
        """Sums over the parts of each trajectory, [S, ...], from the values of packed sequences [G, ...]."""
        num_seqs = int(self.seq_M.max()) + 1
        return value_G.new_zeros(num_seqs, *value_G.shape[1:]).index_add(0, self.seq_M, value_G[self.part_M])

    def in_sequences(self, value_S: Tensor) -> Tensor:
        """Sums over the trajectories that a packed sequence is a part of, [G, ...]; the transpose of
        in_trajectories."""
        num_parts = int(self.part_M.max()) + 1
        return value_S.new_zeros(num_parts, *value_S.shape[1:]).index_add(0, self.part_M, value_S[self.seq_M])

    def answers_of(self, part_N: Tensor) -> Tensor:
        """Number of trajectories that each token is in, from its packed sequence; float32 [N]."""
        ones_S = torch.ones(int(self.seq_M.max()) + 1, device=part_N.device)
        return self.in_sequences(ones_S)[part_N]


def penalty(
    weights: Penalties,
    parts: Parts,
    part_N: Tensor,
    logits_NE: Tensor,
    score_NE: Tensor,
    map_NE: Tensor,
    group: dist.ProcessGroup,
) -> Tensor:
    """This rank's part of the auxiliary losses. *Collective* over the ranks that share the sequences.

    The balance loss of a sequence is the sum over experts of f_e P_e: f_e is E / K times the fraction of its
    tokens routed to e, and P_e the mean over its tokens of the score of e divided by the sum of all scores.
    f_e gets no gradient. A sequence here is a whole trajectory: a shared prompt is a part of several.

    Args:
        parts: the same on all ranks, but for parts.of_T.
        part_N: packed sequence of each token.
    """
    num_experts = score_NE.shape[1]
    used = torch.cat([map_NE.float(), torch.ones_like(score_NE[:, :1])], dim=1)
    used_GE = used.new_zeros(int(parts.part_M.max()) + 1, num_experts + 1).index_add(0, part_N, used)
    dist.all_reduce(used_GE, group=group)
    used_SE = parts.in_trajectories(used_GE)
    used_SE, length_S1 = used_SE[:, :-1], used_SE[:, -1:].clamp(min=1)
    num_chosen = int(map_NE[0].sum()) if len(map_NE) else 1
    often_SE = used_SE * num_experts / (num_chosen * length_S1)
    likely_NE = score_NE / score_NE.sum(1, keepdim=True)
    balance = (parts.in_sequences(often_SE / length_S1)[part_N] * likely_NE).sum()
    z = (logits_NE.float().logsumexp(1).square() * parts.in_sequences(1 / length_S1)[part_N, 0]).sum()
    return weights.balance * balance + weights.z * z


def scores(model: ModelSpec, logits_NE: Tensor) -> Tensor:
    """Scores of the experts in [0, 1], float32 [N, E]."""
    logits_NE = logits_NE.float()
    return logits_NE.sigmoid() if model.router_score == "sigmoid" else logits_NE.softmax(-1)


def choose(model: ModelSpec, score_NE: Tensor, bias_E: Tensor | None) -> Tensor:
    """Experts of every token, int64 [N, K], in no particular order.

    With groups, the best groups are chosen first, then experts in them. A group's score is that of its best
    expert with softmax scores, and the sum of its best two with sigmoid scores.
    """
    if bias_E is not None:
        score_NE = score_NE + bias_E
    if model.router_groups > 1:
        group_NGE = score_NE.unflatten(1, (model.router_groups, -1))
        best = 2 if model.router_score == "sigmoid" else 1
        merit_NG = group_NGE.topk(best, dim=2).values.sum(2)
        open_NG = torch.zeros_like(merit_NG, dtype=torch.bool)
        open_NG.scatter_(1, merit_NG.topk(model.router_top_groups, dim=1).indices, True)
        score_NE = group_NGE.masked_fill(~open_NG.unsqueeze(2), -torch.inf).flatten(1)
    return score_NE.topk(model.experts_per_token, dim=1).indices


def weigh(model: ModelSpec, score_NE: Tensor, chosen_NK: Tensor) -> Tensor:
    """Weight of each chosen expert's output, [N, K]."""
    weight_NK = score_NE.gather(1, chosen_NK)
    if model.router_normalizes:
        weight_NK = weight_NK / (weight_NK.sum(1, keepdim=True) + 1e-20)
    return weight_NK * model.router_scale
