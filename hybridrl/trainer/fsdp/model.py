"""Forward and backward of a sharded network: every rank runs as many microbatches, so that all gather alike.

Gradients are summed over microbatches on each rank, and once over ranks with the last one.
Shape letters: O trained tokens that this rank predicts, R trained tokens of a microbatch.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from hybridrl.config.training import MoEConfig, OptimizerConfig
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.fsdp import FSDPLayout
from hybridrl.trainer.base import Model, Result
from hybridrl.trainer.context import gather_predicted, own_predicted
from hybridrl.trainer.fsdp import lora
from hybridrl.trainer.fsdp.groups import Groups
from hybridrl.trainer.fsdp.network import PackedNetwork, root
from hybridrl.trainer.fsdp.optimizer import Optimizer, local
from hybridrl.trainer.fsdp.tensor_parallel import Shardings, copy_to, sum_over, with_partial_gradients
from hybridrl.trainer.fsdp.vision import in_tower
from hybridrl.trainer.head_logprob import head_gaps, likeliest
from hybridrl.trainer.linear_logprob import Shard, output_logprob
from hybridrl.trainer.lora import switched_off
from hybridrl.trainer.packing import idle_microbatch
from hybridrl.trainer.places import Microbatch, TokenPartition
from hybridrl.trainer.routing import Routing
from hybridrl.trainer.views import TensorView


class FSDPModel(Model):
    layout: FSDPLayout

    def __init__(
        self,
        network: PackedNetwork,
        layout: FSDPLayout,
        rank: int,
        *,
        groups: Groups,
        partition: TokenPartition,
        shardings: Shardings,
        adapters: AdapterLayout | None,
        gathers_once: bool,
        keep_on_host: Literal["none", "optimizer", "all"],
        device: torch.device,
        seed: int,
        banned: Sequence[int],
        tower_lr: float | None,
    ) -> None:
        """
        Args:
            partition: how idle microbatches are packed.
            shardings: how tensor parallelism shards each parameter, by name.
            adapters: the adapters of the network, which are initialised here from the seed.
            gathers_once: weights stay gathered over all microbatches of a pass.
            keep_on_host: as actor.keep_on_host; the network was built for it.
            device: where the network computes.
            banned: tokens that cannot be sampled; their probability is 0.
            tower_lr: peak learning rate of a vision tower; None: that of the optimizer's config.
        """
        self._banned, self._tower_lr = banned, tower_lr
        self._gathers_once, self._keep_on_host, self._device = gathers_once, keep_on_host, device
        self._network, self.layout, self.rank, self.adapters = network, layout, rank, adapters
        self._groups, self._partition, self._shardings = groups, partition, shardings
        self._partial = with_partial_gradients(shardings) if layout.tp > 1 else frozenset[str]()
        held = {name: local(p) for name, p in network.named_parameters() if local(p).numel()}
        self._shards = {name: shard for name, shard in held.items() if ".adapter." not in name}
        if adapters is not None:
            lora.start(adapters, rank, held, seed)
            self._whole_a = lora.gathered(network, device)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self._network.named_parameters()

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._shards)

    def weights(self) -> Mapping[str, Tensor]:
        whole = self.tensors()
        if self.adapters is not None:
            whole = lora.Merged(self._shards, self._network, self._whole_a)
        return OnDevice(whole, self._device) if self._on_host else whole

    @property
    def _on_host(self) -> bool:
        """The shards are in host memory, and the network computes on a GPU."""
        return self._keep_on_host == "all" and self._device.type != "cpu"

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
                last = index == len(filled) - 1
                root(self._network).set_requires_gradient_sync(last)
                if self._gathers_once:
                    root(self._network).set_reshard_after_backward(last)
                hidden_O1 = self._network(microbatch)
                if microbatch.num_seqs:
                    share, result = loss(microbatch, hidden_O1)
                    results.append(result)
                else:
                    share = self._no_loss(hidden_O1)
                share.backward()
        self._sum_partial_gradients()
        return results

    def _no_loss(self, hidden_O1: Tensor) -> Tensor:
        """A loss of 0 whose backward pass reaches every parameter."""
        return self._network.logits(self._copied(hidden_O1), self._num_entries).sum()

    def _sum_partial_gradients(self) -> None:
        """Sum over tensor-parallel ranks what each of them has a part of."""
        held = (p.grad for name, p in self.named_parameters() if name in self._partial)
        sum_over(self._groups.tp_group, [local(grad) for grad in held if grad is not None], self._device)

    @contextlib.contextmanager
    def _resharded(self) -> Iterator[None]:
        """Afterwards nothing is gathered: what is would be used again, though weights may have changed."""
        try:
            yield
        finally:
            root(self._network).reshard()
            if self._on_host:  # copies to the GPU may still read shards that the caller is about to change
                torch.cuda.synchronize(self._device)

    def _filled(self, microbatches: Sequence[Microbatch]) -> list[Microbatch]:
        """The microbatches, then idle ones, as many as on the rank that has most. *Collective*."""
        most = torch.tensor(len(microbatches), device=self._device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        idle = [idle_microbatch(self._partition, self._device) for _ in range(int(most) - len(microbatches))]
        return [*microbatches, *idle]

    def score(self, microbatch: Microbatch, hidden_O1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """*Collective* over tensor- and context-parallel ranks."""
        hidden_O1 = self._copied(hidden_O1)
        own = output_logprob(
            hidden_O1.squeeze(1),
            self._network.output_weight,
            microbatch.target_O,
            self._shard,
            temperature=temperature,
            logits=lambda: self._shard.without_banned(self._network.logits(hidden_O1, self._num_entries)),
        )
        both_P2 = gather_predicted(microbatch, torch.stack(own, dim=1), self._groups.cp)
        logp_P, entropy_P = both_P2.unbind(1)
        return logp_P, entropy_P

    def head_logp(
        self, microbatch: Microbatch, hidden_O1: Tensor, logp_P: Tensor, head_PK: Tensor, temperature: float
    ) -> Tensor:
        """*Collective* like `score`."""
        gap_OK = head_gaps(
            self._copied(hidden_O1).squeeze(1),
            self._network.output_weight,
            microbatch.target_O,
            own_predicted(microbatch, head_PK, self._groups.cp.rank()),
            self._shard,
            temperature=temperature,
        )
        return logp_P.unsqueeze(1) + gather_predicted(microbatch, gap_OK, self._groups.cp)

    def likeliest(self, microbatch: Microbatch, hidden_O1: Tensor, count: int) -> Tensor:
        """*Collective* like `score`."""
        hidden_OH = self._copied(hidden_O1).squeeze(1)
        token_OC = likeliest(hidden_OH, self._network.output_weight, count, self._shard)
        return gather_predicted(microbatch, token_OC, self._groups.cp)

    def values(self, microbatch: Microbatch, hidden_O1: Tensor) -> Tensor:
        # In bf16, answers to one prompt would get the same score where theirs differ by less than 1 %.
        value_O1 = F.linear(hidden_O1.squeeze(1).float(), self._network.output_weight.float())
        return gather_predicted(microbatch, value_O1.flatten(), self._groups.cp)

    def _copied(self, hidden_O1: Tensor) -> Tensor:
        """Hidden states for the output layer, of which each tensor-parallel rank has a part."""
        return hidden_O1 if self._network.output == "score" else copy_to(self._groups.tp_group, hidden_O1)

    @property
    def _shard(self) -> Shard:
        """This rank's part of the output layer."""
        return Shard(
            first=self._first_entry,
            num_entries=self._num_entries,
            group=self._groups.tp_group,
            banned=self._banned,
        )

    @property
    def _first_entry(self) -> int:
        """Token id of the first vocabulary entry of this rank."""
        return self._groups.tp.get_local_rank() * (self.layout.padded_vocab // self.layout.tp)

    @property
    def _num_entries(self) -> int:
        """Vocabulary entries of this rank, without padding."""
        part = self.layout.padded_vocab // self.layout.tp
        return max(0, min(part, self.layout.spec.vocab_size - self._first_entry))

    def whole_gradients(self) -> dict[str, Tensor]:
        trained = {n: p for n, p in self.named_parameters() if p.requires_grad and local(p).numel()}
        return {
            name: torch.zeros_like(local(p)) if p.grad is None else local(p.grad)
            for name, p in trained.items()
        }

    def gradient_buffers(self) -> Iterable[Tensor]:
        """None: a step frees its gradients."""
        return ()

    def optimizer(self, config: OptimizerConfig, num_steps: int) -> Optimizer:
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        counted = [name for name in trained if self._counts(name)]
        peaks = {} if self._tower_lr is None else dict.fromkeys(filter(in_tower, trained), self._tower_lr)
        return Optimizer(
            config,
            trained,
            num_steps,
            counted=counted,
            peaks=peaks,
            updated=self._updated,
            device=self._device,
            on_host=self._keep_on_host == "optimizer",
        )

    def _counts(self, name: str) -> bool:
        """Whether this rank adds a parameter to the gradient norm, to which every element counts once."""
        first = self._groups.tp.get_local_rank() == 0
        return self._groups.copy == 0 and (first or self._shardings[name] != "whole")

    def _updated(self) -> None:
        """Called when the parameters have changed. *Collective*."""
        if self.adapters is not None:
            self._whole_a = lora.gathered(self._network, self._device)

    def routing(self, config: MoEConfig) -> Routing:
        return Routing(config, self._network.routers, self.layout.spec, None)

    def without_adapters(self) -> AbstractContextManager[None]:
        return switched_off(lora.adapters(self._network).values())


class OnDevice(TensorView):
    """Tensors that are in host memory, by name. Each is copied to the device on access."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        super().__init__(tensors)
        self._device = device

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device)
