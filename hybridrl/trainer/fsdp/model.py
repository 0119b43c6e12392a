"""Forward and backward of a sharded network: every rank runs as many microbatches, so that all gather alike.

Gradients are summed over microbatches on each rank, and once over ranks with the last one.
Shape letters: O trained tokens that this rank predicts, R trained tokens of a microbatch.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from hybridrl.config.training import MoEConfig, OptimizerConfig
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.trainer.base import Model, NoRouting, Result
from hybridrl.trainer.fsdp.network import PackedNetwork, root
from hybridrl.trainer.fsdp.optimizer import Optimizer, local
from hybridrl.trainer.linear_logprob import Shard, output_logprob
from hybridrl.trainer.packing import Microbatch, TokenPartition, idle_microbatch


class FSDPModel(Model):
    def __init__(
        self, network: PackedNetwork, layout: TrainerLayout, rank: int, alone: dist.ProcessGroup
    ) -> None:
        """
        Args:
            alone: a group of this rank only: it has the whole vocabulary while it computes.
        """
        self._network, self.layout, self.rank, self.adapters = network, layout, rank, None
        self._alone = alone
        self._shards = {name: local(p) for name, p in network.named_parameters() if local(p).numel()}

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self._network.named_parameters()

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._shards)

    def weights(self) -> Mapping[str, Tensor]:
        return self.tensors()

    def copy(self, weights: Mapping[str, Tensor]) -> None:
        for name, shard in self._shards.items():
            if name in weights:
                shard.copy_(weights[name])

    @contextlib.contextmanager
    def computing_with(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        self._exchange(weights)
        try:
            yield
        finally:
            self._exchange(weights)

    def _exchange(self, weights: Mapping[str, Tensor]) -> None:
        """Swap contents: FSDP keeps the storage of its shards, so that nothing can be put in their place."""
        for name, shard in self._shards.items():
            if name in weights and weights[name].data_ptr() != shard.data_ptr():
                kept = shard.clone()
                shard.copy_(weights[name])
                weights[name].copy_(kept)

    def evaluate(
        self, microbatches: Sequence[Microbatch], visit: Callable[[Microbatch, Tensor], None]
    ) -> None:
        with torch.no_grad(), self._resharded():
            for microbatch in self._filled(microbatches):
                hidden_O1 = self._network(microbatch)
                if microbatch.num_seqs:
                    visit(microbatch, hidden_O1)

    def accumulate_gradients(
        self,
        microbatches: Sequence[Microbatch],
        loss: Callable[[Microbatch, Tensor], tuple[Tensor, Result]],
    ) -> list[Result]:
        results, filled = [], self._filled(microbatches)
        with self._resharded():
            for index, microbatch in enumerate(filled):
                root(self._network).set_requires_gradient_sync(index == len(filled) - 1)
                hidden_O1 = self._network(microbatch)
                if microbatch.num_seqs:
                    share, result = loss(microbatch, hidden_O1)
                    results.append(result)
                else:
                    share = self._network.logits(hidden_O1).sum()  # 0, and every parameter has a gradient
                share.backward()
        return results

    @contextlib.contextmanager
    def _resharded(self) -> Iterator[None]:
        """Afterwards nothing is gathered: what is would be used again, though weights may have changed."""
        try:
            yield
        finally:
            root(self._network).reshard()

    def _filled(self, microbatches: Sequence[Microbatch]) -> list[Microbatch]:
        """The microbatches, then idle ones, as many as on the rank that has most. *Collective*."""
        device = next(iter(self._network.parameters())).device
        most = torch.tensor(len(microbatches), device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        idle = [idle_microbatch(TokenPartition(), device) for _ in range(int(most) - len(microbatches))]
        return [*microbatches, *idle]

    def score(self, microbatch: Microbatch, hidden_O1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        weight = self._network.output_weight
        logp_O, entropy_O = output_logprob(
            hidden_O1.squeeze(1),
            weight,
            microbatch.target_O,
            Shard(first=0, num_entries=len(weight), group=self._alone),
            temperature=temperature,
            logits=lambda: self._network.logits(hidden_O1),
        )
        return logp_O[microbatch.from_R], entropy_O[microbatch.from_R]

    def values(self, microbatch: Microbatch, hidden_O1: Tensor) -> Tensor:
        # In bf16, answers to one prompt would get the same score where theirs differ by less than 1 %.
        value_O1 = F.linear(hidden_O1.squeeze(1).float(), self._network.output_weight.float())
        return value_O1.flatten()[microbatch.from_R]

    def whole_gradients(self) -> dict[str, Tensor]:
        grads = {name: parameter.grad for name, parameter in self.named_parameters()}
        return {
            n: torch.zeros_like(s) if grads[n] is None else local(grads[n]) for n, s in self._shards.items()
        }

    def gradient_buffers(self) -> Iterable[Tensor]:
        """None: a step frees its gradients."""
        return ()

    def optimizer(self, config: OptimizerConfig, num_steps: int) -> Optimizer:
        return Optimizer(config, list(self._network.parameters()), num_steps)

    def routing(self, config: MoEConfig) -> NoRouting:
        return NoRouting()

    def without_adapters(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()
