"""Adam with the interface of the fused GPU optimizers: the step count is per group, not per parameter.

Megatron's DistributedOptimizer has a separate code path that saves and loads fused optimizers. With this
class a CPU run uses the same path.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw


class FusedAdam(torch.optim.Optimizer):
    """Adam or AdamW. The owner sets exp_avg and exp_avg_sq of every parameter to 0 before the first step."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        adam_w_mode: bool,
        capturable: bool = False,
    ) -> None:
        """
        Args:
            adam_w_mode: True decouples weight decay from the gradient (AdamW), False adds it to the gradient.
            capturable: whether CUDA graphs can capture the optimizer, which newer releases of Megatron pass;
                a CPU has no CUDA graphs.

        Raises:
            ValueError: capturable is True.
        """
        if capturable:
            raise ValueError("no CUDA graph captures an optimizer on a CPU: leave capturable at False")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._update = adamw if adam_w_mode else adam

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [p for p in group["params"] if p.grad is not None]
            self._update(
                params,
                [p.grad for p in params],
                [self.state[p]["exp_avg"] for p in params],
                [self.state[p]["exp_avg_sq"] for p in params],
                [],
                [torch.tensor(group["step"] - 1.0) for _ in params],  # torch adds the 1 itself
                foreach=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
