"""Controls all routers of a model: replays choices over the passes of a batch, balances, counts.

Shape letters: E experts of a layer, L layers of the whole model.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from hybridrl.batch import TokenBlock
from hybridrl.config.training import MoEConfig
from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.experts import Choices, EngineChoices, EngineExperts, Penalties, RouterOfTokens


class Routing:
    """Implements base.Routing."""

    def __init__(
        self,
        config: MoEConfig,
        routers: Sequence[RouterOfTokens],
        model: ModelSpec,
        group: dist.ProcessGroup | None,
    ) -> None:
        """
        Args:
            routers: those of this rank.
            group: ranks that have tokens for the same routers; None: all ranks.
        """
        self._config, self._routers, self._group = config, routers, group or dist.group.WORLD
        self._num_layers, self._num_experts = model.num_layers, model.num_experts
        self._kept: Sequence[Choices | EngineChoices] = []
        """Choices to replay, one entry per router; empty if nothing is replayed."""

    @contextlib.contextmanager
    def keeping(self, blocks: Sequence[TokenBlock], *, share: bool) -> Iterator[None]:
        """Same contract as base.Routing.keeping. *Collective*."""
        self._kept = []
        if self._config.router_replay == "rollout":
            experts = EngineExperts(blocks)
            self._kept = [EngineChoices(experts, r, r.layer_number - 1) for r in self._routers]
            with self._visiting(self._kept):
                yield
            return
        if self._config.router_replay == "none":
            yield
            return
        num_tokens = sum(len(block.token_T) for block in blocks)
        kept = [Choices(num_tokens, router.topk, router.weight.device) for router in self._routers]
        with self._visiting(kept):
            yield
        for choices in kept:
            choices.complete(self._group if share else None)
        self._kept = kept

    @contextlib.contextmanager
    def training(self, num_sequences: int) -> Iterator[None]:
        """Same contract as base.Routing.training."""
        config = self._config
        penalties = Penalties(config.aux_loss / num_sequences, config.z_loss / num_sequences)
        for router in self._routers:
            router.count_from_zero()
            router.penalties = penalties
        with self._visiting(self._kept):
            yield
        for router in self._routers:
            router.penalties = Penalties()

    @contextlib.contextmanager
    def _visiting(self, kept: Sequence[Choices | EngineChoices]) -> Iterator[None]:
        """A context in which each router has its entry of `kept`."""
        for router, choices in zip(self._routers, kept):
            router.choices = choices
        try:
            yield
        finally:
            for router in self._routers:
                router.choices = None

    def agreement(self) -> dict[str, float]:
        """Metric: how often router and engine differed since the batch was loaded. *Collective*."""
        if self._config.router_replay != "rollout":
            return {}
        count_L2 = torch.zeros(self._num_layers, 2, dtype=torch.float64)
        for router, choices in zip(self._routers, self._kept, strict=True):
            assert isinstance(choices, EngineChoices)
            count_L2[router.layer_number - 1] = choices.count_2
        dist.all_reduce(count_L2)
        count_L2 = count_L2[count_L2[:, 1] > 0]
        return (
            {"moe/engine_differs": (count_L2[:, 0] / count_L2[:, 1]).mean().item()} if len(count_L2) else {}
        )

    def metrics(self) -> dict[str, float]:
        """Metrics of the last optimizer step. *Collective*, all ranks."""
        if not self._num_experts:
            return {}
        report = torch.zeros(self._num_layers, self._num_experts + 1, dtype=torch.float64)
        for router in self._routers:
            report[router.layer_number - 1, :-1] = router.count_E.cpu()
            report[router.layer_number - 1, -1] = router.penalty.cpu()
        dist.all_reduce(report)
        count_LE = report[:, :-1]
        count_LE = count_LE[count_LE.sum(1) > 0]
        found = {"moe/load_max": (count_LE.amax(1) / count_LE.mean(1)).mean().item()} if len(count_LE) else {}
        if self._config.aux_loss or self._config.z_loss:
            found["moe/penalty"] = report[:, -1].sum().item()
        return found
