"""Transformers' own model on one rank, in plain torch.

Shape letters: R trained tokens of a microbatch, O those that this rank predicts, all of them.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hybridrl.config.training import OptimizerConfig
from hybridrl.layout.trainers import TrainerLayout
from hybridrl.trainer.base import WEIGHTS, Backend, Model, NoRouting
from hybridrl.trainer.learning_rate import learning_rate
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.places import Microbatch, TokenPartition
from hybridrl.trainer.setup import RankSetup, make_layout


class PlainOptimizer:
    quantities = (WEIGHTS, "exp_avg", "exp_avg_sq")

    def __init__(self, network: torch.nn.Module, config: Any, num_steps: int) -> None:
        self._network, self._config, self._num_steps = network, config, num_steps
        self._adam = _adamw(network, config)
        self.num_steps_done = 0
        for parameter in network.parameters():
            zeros = {name: torch.zeros_like(parameter.data) for name in ("exp_avg", "exp_avg_sq")}
            self._adam.state[parameter] = {"step": torch.tensor(0.0), **zeros}

    def zero_gradients(self) -> None:
        for parameter in self._network.parameters():
            parameter.grad = torch.zeros_like(parameter)

    @property
    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self._network.parameters() if parameter.grad is not None]

    def gradient_norm(self) -> float:
        return torch.nn.utils.get_total_norm(self._gradients).item()

    def step(self, gradient_norm: float) -> float:
        lr = learning_rate(self._config, self.num_steps_done, self._num_steps)
        scale = min(1.0, self._config.clip_grad_norm / (gradient_norm + 1e-6))
        for gradient in self._gradients:
            gradient.mul_(scale)
        for group in self._adam.param_groups:
            group["lr"] = lr
        self._adam.step()
        self.num_steps_done += 1
        return lr

    def scaling(self) -> dict[str, float]:
        return {}

    def tensors(self) -> dict[str, Tensor]:
        states = enumerate(self._adam.state.values())
        return {f"{i}.{name}": state[name] for i, state in states for name in ("exp_avg", "exp_avg_sq")}

    def flat_ranges(self) -> Iterator[tuple[Any, int, dict[str, Tensor]]]:
        for parameter, state in self._adam.state.items():
            moments = {name: state[name].view(-1) for name in ("exp_avg", "exp_avg_sq")}
            yield parameter, 0, {WEIGHTS: parameter.data.view(-1), **moments}

    @property
    def progress(self) -> dict[str, Any]:
        return {"num_steps_done": self.num_steps_done, "scalers": []}

    def resume(self, progress: Mapping[str, Any]) -> None:
        self.num_steps_done = progress["num_steps_done"]
        for state in self._adam.state.values():
            state["step"] = torch.tensor(float(self.num_steps_done))


class PlainModel(Model):
    def __init__(self, network: Any, layout: TrainerLayout, *, value_head: bool) -> None:
        self._network, self.layout, self.rank, self.adapters = network, layout, 0, None
        assert not value_head, "no test has one"

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        return self._network.named_parameters()

    def weights(self) -> Mapping[str, Tensor]:
        return self.tensors()

    def evaluate(self, microbatches: Sequence[Microbatch], visit: Callable[..., None]) -> None:
        with torch.no_grad():
            for microbatch in microbatches:
                visit(microbatch, self._hidden(microbatch))

    def accumulate_gradients(self, microbatches: Sequence[Microbatch], loss: Callable[..., Any]) -> Any:
        results = []
        for microbatch in microbatches:
            share, result = loss(microbatch, self._hidden(microbatch))
            share.backward()
            results.append(result)
        return results

    def _hidden(self, microbatch: Microbatch) -> Tensor:
        runs = microbatch.packing.runs
        parts = microbatch.token_T.split([count * length for count, length in runs])
        shaped = (part.view(run) for part, run in zip(parts, runs, strict=True))
        hidden = [self._network.model(input_ids=part).last_hidden_state.flatten(0, 1) for part in shaped]
        return torch.cat(hidden)[microbatch.packing.predict_O].unsqueeze(1)

    def score(self, microbatch: Microbatch, hidden_O1: Tensor, temperature: float) -> Any:
        logp_OV = (self._network.lm_head(hidden_O1.squeeze(1)) / temperature).log_softmax(-1)
        logp_O = logp_OV.gather(1, microbatch.target_O.unsqueeze(1)).squeeze(1)
        entropy_O = -(logp_OV.exp() * logp_OV).sum(1)
        return logp_O[microbatch.from_P], entropy_O[microbatch.from_P]

    def values(self, microbatch: Microbatch, hidden_O1: Tensor) -> Tensor:
        raise AssertionError("no test has a value head")

    def whole_gradients(self) -> dict[str, Tensor]:
        return {name: parameter.grad for name, parameter in self.named_parameters()}

    def gradient_buffers(self) -> Iterable[Tensor]:
        return ()

    def optimizer(self, config: Any, num_steps: int) -> PlainOptimizer:
        return PlainOptimizer(self._network, config, num_steps)

    def routing(self, config: Any) -> NoRouting:
        return NoRouting()

    def without_adapters(self) -> Any:
        return contextlib.nullcontext()


class PlainBackend(Backend):
    def __init__(self, setup: RankSetup) -> None:
        self.setup, self.device, self.layout = setup, torch.device("cpu"), make_layout(setup)
        assert dist.group.WORLD is not None, "the ranks have met"
        self.mesh, self.partition = Mesh(dist.group.WORLD), TokenPartition()

    def scope(self) -> Any:
        return contextlib.nullcontext()

    def sharing(self, setup: RankSetup) -> "PlainBackend":
        return PlainBackend(setup)

    def build(self, *, value_head: bool = False, trained: bool = True, lora: Any = None) -> PlainModel:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(self.setup.model_folder)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return PlainModel(network, self.layout, value_head=value_head)

    def written(self, layout: Any) -> tuple[set[str], set[str]]:
        return set(layout.shards(0)), set(layout.shards(0))

    def random_state(self) -> dict[str, Tensor]:
        return {"torch": torch.get_rng_state()}

    def set_random_state(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["torch"])

    def reseed(self, digest: bytes) -> None:
        torch.manual_seed(int.from_bytes(digest[:4]))

    def close(self) -> None:
        dist.destroy_process_group()


def _adamw(network: torch.nn.Module, options: OptimizerConfig) -> torch.optim.AdamW:
    """Norms and biases are not decayed."""
    groups = [[p for p in network.parameters() if (p.dim() == 1) == vector] for vector in (False, True)]
    decays = (options.weight_decay, 0.0)
    grouped = [{"params": g, "weight_decay": decay} for g, decay in zip(groups, decays, strict=True)]
    return torch.optim.AdamW(grouped, lr=options.lr, betas=options.betas, eps=options.eps)


def open(setup: RankSetup) -> PlainBackend:
    dist.init_process_group("gloo", init_method=setup.rendezvous, rank=setup.rank, world_size=1)
    torch.manual_seed(setup.seed)
    return PlainBackend(setup)
