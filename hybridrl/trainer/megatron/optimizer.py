"""AdamW with Megatron's DistributedOptimizer: optimizer state is sharded over the data-parallel ranks."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from megatron.core.optimizer import (
    ChainedOptimizer,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer.optimizer_config import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.optimizer_config import ParamKey
from megatron.core.optimizer_param_scheduler import ParamGroupOverride
from torch import Tensor
from torch.nn import Parameter

from hybridrl.config.training import OptimizerConfig
from hybridrl.trainer.base import WEIGHTS
from hybridrl.trainer.learning_rate import learning_rate
from hybridrl.trainer.megatron.model import Stage

INITIAL_LOSS_SCALE = 2.0**16
"""Initial loss scale of fp16. With Megatron's default, 2**32, the first dozen optimizer steps overflow."""

_TOWER = "*visual.*"
"""Names of the parameters of a vision tower, inside any of Megatron's wrappers."""


class Optimizer:
    """Implements base.Optimizer. Every method is *collective* over all ranks."""

    quantities = (WEIGHTS, "exp_avg", "exp_avg_sq")

    def __init__(
        self, config: OptimizerConfig, stage: Stage, num_steps: int, *, tower_lr: float | None = None
    ) -> None:
        """
        Args:
            stage: the model with the initial weights, which are copied to fp32 if they are not fp32.
            num_steps: length of the learning-rate schedule.
            tower_lr: peak learning rate of the vision tower; None: that of the config.
        """
        self._config, self._stage, self._num_steps = config, stage, num_steps
        self.num_steps_done = 0
        self._overflowed = False
        options = MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.betas[0],
            adam_beta2=config.betas[1],
            adam_eps=config.eps,
            bf16=stage[0].config.bf16,
            fp16=stage[0].config.fp16,
            initial_loss_scale=INITIAL_LOSS_SCALE,
            params_dtype=stage[0].config.params_dtype,
            use_distributed_optimizer=True,
        )
        overrides = get_standard_config_overrides(options)
        if tower_lr is not None:
            overrides[ParamKey(name=_TOWER)] = ParamGroupOverride(max_lr=tower_lr)
        self.megatron: ChainedOptimizer = get_megatron_optimizer(options, cast(Any, stage), overrides)
        self._parts = [p for p in self.megatron.chained_optimizers if p.optimizer is not None]
        """Megatron's optimizers that have parameters on this rank: one for experts, one for all others."""

        for part in self._parts:
            part.init_state_fn(
                part.optimizer, options
            )  # moments are 0: a checkpoint may precede the first step

    def zero_gradients(self) -> None:
        for chunk in self._stage:
            chunk.zero_grad_buffer()
        self.megatron.zero_grad()
        config = self._stage[0].config  # models share this config, so the loss scale is set for each pass
        config.grad_scale_func = self.megatron.scale_loss if config.fp16 else None

    def gradient_norm(self) -> float:
        self._overflowed = self.megatron.prepare_grads()
        return 0.0 if self._overflowed else float(self.megatron.get_grad_norm())

    def scaling(self) -> dict[str, float]:
        if not self._stage[0].config.fp16:
            return {}
        scale = float(self.megatron.get_loss_scale())
        return {"actor/loss_scale": scale, "actor/overflow": float(self._overflowed)}

    def step(self, gradient_norm: float) -> float:
        if self._overflowed:
            return 0.0
        if self._config.clip_grad_norm > 0:
            parameters = [parameter for part in self._parts for parameter in part.get_parameters()]
            clip_grad_by_total_norm_fp32(parameters, self._config.clip_grad_norm, gradient_norm)
        lr = learning_rate(self._config, self.num_steps_done, self._num_steps)
        for group in self.megatron.param_groups:
            group["lr"] = lr * (group["max_lr"] / self._config.lr)
            group["weight_decay"] = self._config.weight_decay * group["wd_mult"]  # 0 for norms and biases
        self.megatron.step_with_ready_grads()
        self.num_steps_done += 1
        return lr

    def tensors(self) -> dict[str, Tensor]:
        """Live tensors: this rank's share of the moments, and of the fp32 copies of bf16 or fp16 parameters.

        Names are positions in the optimizer.
        """
        found = {}
        groups = [(part, group) for part in self._parts for group in part.optimizer.param_groups]
        for g, (part, group) in enumerate(groups):
            for i, parameter in enumerate(group["params"]):
                state = part.optimizer.state[parameter]
                found |= {f"{g}.{i}.{name}": moment for name, moment in state.items()}
                if self._stage[0].config.bf16 or self._stage[0].config.fp16:
                    found[f"{g}.{i}.param"] = parameter
        return found

    def flat_ranges(self) -> Iterator[tuple[Parameter, int, dict[str, Tensor]]]:
        for part in cast(Any, self._parts):
            for parameter in part.model_param_group_index_map:
                state = part._get_main_param_and_optimizer_states(parameter)
                start = part._get_model_param_range_map(parameter)["param"].start
                moments = {name: state[name] for name in self.quantities if name != WEIGHTS}
                yield parameter, start, {WEIGHTS: state["param"], **moments}

    @property
    def progress(self) -> dict[str, Any]:
        scalers = [part.grad_scaler.state_dict() for part in self._scaled_parts]
        plain = [{name: float(value) for name, value in scaler.items()} for scaler in scalers]
        return {"num_steps_done": self.num_steps_done, "scalers": plain}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.num_steps_done = progress["num_steps_done"]
        for part in cast(Any, self._parts):
            for group in part.optimizer.param_groups:
                group["step"] = self.num_steps_done
            part._copy_main_params_to_model_params()
        for part, scaler in zip(self._scaled_parts, progress["scalers"], strict=True):
            counts = {name: int(value) for name, value in scaler.items() if name != "scale"}
            part.grad_scaler.load_state_dict({"scale": torch.tensor([scaler["scale"]]), **counts})
        for chunk in self._stage:
            chunk.start_param_sync(force_sync=True)

    @property
    def _scaled_parts(self) -> list[Any]:
        return [part for part in cast(Any, self._parts) if part.grad_scaler is not None]
