"""AdamW on the shards of this rank: torch's own, over plain tensors that share the shards' memory."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn import Parameter

from hybridrl.config.training import OptimizerConfig
from hybridrl.trainer.base import WEIGHTS
from hybridrl.trainer.learning_rate import learning_rate

MOMENTS = ("exp_avg", "exp_avg_sq")


def local(tensor: Any) -> Tensor:
    """This rank's part of a tensor that is sharded; a live view, without its gradient."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


class Optimizer:
    """As base.Optimizer. Every method is *collective* over all ranks."""

    quantities = (WEIGHTS, *MOMENTS)

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: Mapping[str, Parameter],
        num_steps: int,
        *,
        counted: Collection[str],
        peaks: Mapping[str, float],
        updated: Callable[[], None],
        device: torch.device,
        on_host: bool,
    ) -> None:
        """
        Args:
            parameters: fp32 shards with the weights that training begins from; some may have no rows.
            num_steps: length of the learning-rate schedule.
            counted: names of the parameters that this rank adds to the gradient norm. Of equal shards on
                several ranks, one counts.
            peaks: peak learning rate of each parameter for which it is not that of the config.
            updated: called after every change of the weights.
            device: where the ranks exchange the gradient norm.
            on_host: moments are in host memory, and the step is computed there, on a copy of the weights.
                Shards that are in host memory anyway need no copy.
        """
        self._config, self._num_steps, self._updated = config, num_steps, updated
        self._device = device
        self.num_steps_done = 0
        self._parameters = list(parameters.values())
        self._counted = [parameters[name] for name in counted]
        held = {name: p for name, p in parameters.items() if local(p).numel()}
        self._held = [(p, Parameter(_host_copy(p) if on_host else local(p))) for p in held.values()]
        """Parameters of the model of which this rank has rows, and the rows, or a copy of them that the step
        is computed on."""

        shares = [peaks.get(name, config.lr) / config.lr for name in held]
        self._adam = _adamw([rows for _, rows in self._held], shares, config)
        for _, rows in self._held:
            moments = {name: torch.zeros_like(rows.data) for name in MOMENTS}
            self._adam.state[rows] = {"step": torch.zeros((), device=rows.device), **moments}

    def zero_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def gradient_norm(self) -> float:
        """As base.Optimizer: squares are summed in fp64, since fp32 sums on CPUs err by 1e-4 and more."""
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for parameter in self._counted:
            if parameter.grad is not None:
                total += local(parameter.grad).double().square().sum().to(self._device)
        dist.all_reduce(total)
        return float(total.sqrt())

    def step(self, gradient_norm: float) -> float:
        lr = learning_rate(self._config, self.num_steps_done, self._num_steps)
        most = self._config.clip_grad_norm
        scale = min(1.0, most / (gradient_norm + 1e-6)) if most > 0 else 1.0
        self._fetch()
        for parameter, rows in self._held:
            grad = torch.zeros_like(rows) if parameter.grad is None else local(parameter.grad)
            rows.grad = (grad.mul_(scale) if scale < 1 else grad).to(rows.device)
        for group in self._adam.param_groups:
            group["lr"] = lr * group["share"]
        self._adam.step()
        self._adam.zero_grad()
        self.zero_gradients()
        self.num_steps_done += 1
        self._hand_over()
        return lr

    def _fetch(self) -> None:
        """Copy the weights to where the step is computed; nothing if it is computed in place."""
        for parameter, rows in self._held:
            if local(parameter).data_ptr() != rows.data_ptr():
                rows.data.copy_(local(parameter))

    def _hand_over(self) -> None:
        """Copy the weights to the model, if the step was not computed in place."""
        for parameter, rows in self._held:
            if local(parameter).data_ptr() != rows.data_ptr():
                local(parameter).copy_(rows.data)
        self._updated()

    def scaling(self) -> dict[str, float]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The moments: the weights are those of the model."""
        states = (self._adam.state[rows] for _, rows in self._held)
        return {f"{i}.{name}": state[name] for i, state in enumerate(states) for name in MOMENTS}

    def flat_ranges(self) -> Iterator[tuple[Parameter, int, dict[str, Tensor]]]:
        """As base.Optimizer; each begins with the first element of this rank's rows."""
        self._fetch()
        for parameter, rows in self._held:
            state = self._adam.state[rows]
            yield parameter, 0, {WEIGHTS: rows.data.view(-1), **{n: state[n].view(-1) for n in MOMENTS}}

    @property
    def progress(self) -> dict[str, Any]:
        return {"num_steps_done": self.num_steps_done, "scalers": []}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.num_steps_done = progress["num_steps_done"]
        for _, rows in self._held:
            self._adam.state[rows]["step"].fill_(float(self.num_steps_done))
        self._hand_over()


def _host_copy(parameter: Parameter) -> Tensor:
    """A copy of this rank's rows in host memory, which is pinned if they are on a GPU."""
    rows = local(parameter)
    copy = torch.empty_like(rows, device="cpu", pin_memory=rows.device.type == "cuda")
    return copy.copy_(rows)


def _adamw(rows: Sequence[Parameter], shares: Sequence[float], config: OptimizerConfig) -> torch.optim.AdamW:
    """Norms and biases are not decayed. A rank may have none of them, or nothing at all.

    Args:
        shares: what the learning rate of each is multiplied by.
    """
    groups = [
        {
            "params": [
                p for p, own in zip(rows, shares, strict=True) if (p.dim() == 1, own) == (vector, share)
            ],
            "weight_decay": 0.0 if vector else config.weight_decay,
            "share": share,
        }
        for vector in (False, True)
        for share in sorted({1.0, *shares})
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
