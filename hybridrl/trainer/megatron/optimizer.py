"""AdamW through Megatron's DistributedOptimizer: optimizer state is split over the data-parallel ranks."""

import math

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import OptimizerConfig as MegatronOptimizerConfig
from torch import Tensor

from hybridrl.config.training import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Of optimizer step `step`, counted from 0, in a run of `num_steps`.

    The first of `warmup_steps` takes lr / warmup_steps and the last the full lr: no step is without effect.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
    left = 1 - progress if config.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.min_lr + (config.lr - config.min_lr) * left


class Optimizer:
    """Steps the parameters along the schedule. Every method is *collective* over all ranks."""

    def __init__(self, config: OptimizerConfig, model: DistributedDataParallel, num_steps: int) -> None:
        """
        Args:
            model: holds the weights that training begins from; they are copied where they are not fp32.
            num_steps: length of the learning-rate schedule.
        """
        self._config, self._model, self._num_steps = config, model, num_steps
        self.num_steps_done = 0
        options = MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.betas[0],
            adam_beta2=config.betas[1],
            adam_eps=config.eps,
            bf16=model.config.bf16,
            params_dtype=model.config.params_dtype,
            use_distributed_optimizer=True,
        )
        self.megatron: ChainedOptimizer = get_megatron_optimizer(options, [model])
        whole = self.megatron.chained_optimizers[0]  # a second one would hold the experts
        self._inner: torch.optim.Optimizer = whole.optimizer
        whole.init_state_fn(self._inner, options)  # moments of 0: a checkpoint may come before the first step

    def zero_gradients(self) -> None:
        self._model.zero_grad_buffer()
        self.megatron.zero_grad()

    def gradient_norm(self) -> float:
        """L2 norm of the accumulated gradients over all ranks; changes nothing."""
        self.megatron.prepare_grads()
        return float(self.megatron.get_grad_norm())

    def step(self, gradient_norm: float) -> float:
        """Clip the gradients by their known norm and update the parameters. Returns the learning rate."""
        if self._config.clip_grad_norm > 0:
            parameters = self.megatron.chained_optimizers[0].get_parameters()
            clip_grad_by_total_norm_fp32(parameters, self._config.clip_grad_norm, gradient_norm)
        lr = learning_rate(self._config, self.num_steps_done, self._num_steps)
        for group in self.megatron.param_groups:
            group["lr"] = lr
            group["weight_decay"] = self._config.weight_decay * group["wd_mult"]  # 0 for norms and biases
        self.megatron.step_with_ready_grads()
        self.num_steps_done += 1
        return lr

    def tensors(self) -> dict[str, Tensor]:
        """This rank's share of the moments, and of the fp32 parameters of a model of lower precision.

        Live, named by place in the optimizer.
        """
        found = {}
        for g, group in enumerate(self._inner.param_groups):
            for i, parameter in enumerate(group["params"]):
                found |= {f"{g}.{i}.{name}": moment for name, moment in self._inner.state[parameter].items()}
                if self._model.config.bf16:
                    found[f"{g}.{i}.param"] = parameter
        return found

    def resume(self, num_steps_done: int) -> None:
        """Continue the schedule there; `tensors` hold the state of that moment."""
        self.num_steps_done = num_steps_done
        for group in self._inner.param_groups:
            group["step"] = num_steps_done
