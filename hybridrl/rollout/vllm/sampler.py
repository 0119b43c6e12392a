"""Replaces vLLM's sampler: seeds that belong to requests, log-probabilities of the whole vocabulary.

None of vLLM's logprobs modes has the log-probabilities at the sampling temperature before top-k and top-p.
Its seeds are generators, one per request; on CPU a seeded request ends the engine when its prompt is
computed in several chunks.

Shape letters: B rows, V vocabulary.
"""

# pyright: reportMissingImports=false
# vLLM is in another environment.

from typing import Any

import torch
from torch import Tensor, nn
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata

from hybridrl.rollout.draw import draw, truncated

SEED = "hybridrl_seed"
"""Key of a request's seed in the extra_args of its sampling parameters."""

_GREEDY_BELOW = 1e-5
"""vLLM samples greedily at lower temperatures."""


class SeededSampler(nn.Module):
    logprobs_mode = "processed_logprobs"
    """What vLLM asks of a sampler before it measures the memory of a GPU: in this mode it samples once."""

    def __init__(self, runner: Any) -> None:
        """
        Args:
            runner: vLLM's model runner; its batch has the requests of the rows.
        """
        super().__init__()
        self._runner = runner
        self._requests: list[str] = []
        self._seed_B = torch.empty(0, dtype=torch.int64)
        self._min_p_B: Tensor | None = None

    def forward(
        self,
        logits: Tensor,
        sampling_metadata: SamplingMetadata,
        predict_bonus_token: bool = False,
        logprobs_mode_override: str | None = None,
    ) -> SamplerOutput:
        logits_BV = logits.float()
        temperature_B = sampling_metadata.temperature
        if temperature_B is not None:
            greedy_B = temperature_B < _GREEDY_BELOW
            logits_BV = logits_BV / torch.where(greedy_B, 1.0, temperature_B)[:, None]
        logp_BV = logits_BV.log_softmax(-1)
        if sampling_metadata.all_greedy or temperature_B is None:
            token_B = logits_BV.argmax(-1)
        else:
            token_B = self._drawn(logp_BV, sampling_metadata)
            if not sampling_metadata.all_random:
                token_B = torch.where(greedy_B, logits_BV.argmax(-1), token_B)
        token_B1 = token_B[:, None]
        rank_B = torch.zeros_like(token_B)  # nobody asks for it
        logprobs = LogprobsTensors(token_B1.int(), logp_BV.gather(1, token_B1), rank_B)
        return SamplerOutput(sampled_token_ids=token_B1.int(), logprobs_tensors=logprobs)

    def _drawn(self, logp_BV: Tensor, metadata: SamplingMetadata) -> Tensor:
        self._read_requests(len(logp_BV), logp_BV.device)
        weight_BV = self._truncated(logp_BV.exp(), metadata)
        # The position is that of the last token before the draw, as in an SGLang engine: with the same seed
        # and weights both kinds sample the same tokens.
        position_B = self._runner.seq_lens[: len(weight_BV)].long() - 1
        return draw(weight_BV, self._seed_B, position_B)

    def _truncated(self, weight_BV: Tensor, metadata: SamplingMetadata) -> Tensor:
        if metadata.top_k is None and metadata.top_p is None and self._min_p_B is None:
            return weight_BV
        all_B = torch.full((len(weight_BV),), weight_BV.shape[1], device=weight_BV.device)
        top_k_B = all_B if metadata.top_k is None else metadata.top_k
        top_p_B = torch.ones_like(all_B).float() if metadata.top_p is None else metadata.top_p
        return truncated(weight_BV, top_k_B, top_p_B, self._min_p_B)

    def _read_requests(self, rows: int, device: torch.device) -> None:
        """Fill `_seed_B`, int64 [B], and `_min_p_B`, float [B] or None, of the requests in the batch. Rows
        without a request, with which vLLM measures the memory of a GPU at its start, have 0."""
        batch = self._runner.input_batch
        requests = batch.req_ids[: batch.num_reqs]
        if requests == self._requests and self._seed_B.device == device and len(self._seed_B) == rows:
            return
        asked = [self._runner.requests[one].sampling_params for one in requests]
        none = [0] * (rows - len(asked))
        seeds = [(one.extra_args or {}).get(SEED, 0) for one in asked] + none
        min_ps = [one.min_p for one in asked] + none
        self._seed_B = torch.tensor(seeds, dtype=torch.int64, device=device)
        self._min_p_B = torch.tensor(min_ps, dtype=torch.float32, device=device) if any(min_ps) else None
        self._requests = list(requests)
