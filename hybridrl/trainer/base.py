"""What a trainer backend offers: a folder in this package whose backend.py has `open(setup) -> Backend`, or a
BackendKind outside of the project.

Policy, critic, reference, reward model and training on examples are written against these classes alone.
Methods are *collective*: all ranks call them, in the same order, unless they say otherwise.
Shape letters: U trained tokens of a batch, R those of one microbatch, O those that this rank predicts.
"""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from hybridrl.batch import RankBatch, TokenBlock
from hybridrl.config.training import LoraConfig, MoEConfig, OptimizerConfig
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import Layout
from hybridrl.layout.trainers import TrainerLayout, kind_outside
from hybridrl.models.spec import read, without_vocabulary
from hybridrl.outside import Guarded
from hybridrl.reshard.checkpoint import export_hf, load_hf
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.packing import Microbatch, TokenPartition
from hybridrl.trainer.setup import RankSetup, module_of

Result = TypeVar("Result")

WEIGHTS = "weights"
"""Quantity: the parameters themselves, in the precision that they are updated in."""


class Optimizer(Protocol):
    """Steps the parameters of one model along a schedule."""

    num_steps_done: int
    quantities: Sequence[str]
    """That `stretches` gives of every parameter; WEIGHTS among them."""

    def zero_gradients(self) -> None: ...

    def gradient_norm(self) -> float:
        """L2 norm of the accumulated gradients over all ranks; changes no parameter.

        0 where fp16 overflowed: `step` then does nothing, and the next loss is scaled less.
        """
        ...

    def step(self, gradient_norm: float) -> float:
        """Clip the gradients by their known norm and update the parameters.

        Returns:
            The learning rate; 0 where fp16 overflowed.
        """
        ...

    def scaling(self) -> dict[str, float]:
        """Of fp16, as metrics: the loss scale from here on, and 1 if the last gradients overflowed.

        Not collective.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """This rank's share of the state, live, under any names. Not collective."""
        ...

    def flat_ranges(self) -> Iterator[tuple[Parameter, int, dict[str, Tensor]]]:
        """This rank's share of every parameter of which it has one: first element, and quantity -> flat fp32.

        Live; `resume` makes weights that were written there those of the model. Not collective.
        """
        ...

    @property
    def progress(self) -> dict[str, Any]:
        """What `resume` takes; JSON."""
        ...

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Continue the schedule there; `stretches` hold the state of that moment."""
        ...


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


class Routing(Protocol):
    """What the routers of a model do over the passes of a batch. Without experts, nothing."""

    def keeping(self, blocks: Sequence[TokenBlock], *, share: bool) -> AbstractContextManager[None]:
        """Inside, the choices of a new batch are kept, if they are to be replayed; the engine's hold already.

        Args:
            share: a token may be on another rank later.

        Raises:
            ConfigError: the engine's are to hold, and are not there.
        """
        ...

    def training(self, num_sequences: int) -> AbstractContextManager[None]:
        """Inside are the passes of one optimizer step of so many sequences, over all ranks."""
        ...

    def agreement(self) -> dict[str, float]:
        """How often router and engine differed since the batch came, as a metric."""
        ...

    def metrics(self) -> dict[str, float]:
        """Of the last step."""
        ...


class Model(ABC):
    """One model on this rank; all parameters are 0 until they are loaded."""

    layout: TrainerLayout
    adapters: AdapterLayout | None
    """What is trained, if that is not the model itself."""

    rank: int

    @property
    def trained(self) -> TrainerLayout | AdapterLayout:
        """Layout of what is trained of it."""
        return self.adapters or self.layout

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Those of this rank by their names in `layout` and `adapters`. Not collective."""

    def tensors(self) -> dict[str, Tensor]:
        """The live parameters that are in `layout`. Not collective."""
        names = self.layout.shards(self.rank)
        return {name: parameter.data for name, parameter in self.named_parameters() if name in names}

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """As `tensors`, with the adapters in them: such a one is computed when it is asked for."""

    def load(self, folder: Path, into: Mapping[str, Tensor] | None = None) -> None:
        """Take the weights of a model folder, which may lack the value head: that stays 0.

        Args:
            into: tensors of the same names and shapes that get them; None: the parameters.
        """
        layout = self.layout
        if layout.spec.value_head and not read(folder).value_head:
            layout = replace(layout, spec=without_vocabulary(layout.spec, head="none"))
        load_hf(folder, layout, self.rank, self.tensors() if into is None else into)

    def copy(self, weights: Mapping[str, Tensor]) -> None:
        """Take over those of the weights whose names it has. Not collective."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])

    @abstractmethod
    def evaluate(
        self, microbatches: Sequence[Microbatch], visit: Callable[[Microbatch, Tensor], None]
    ) -> None:
        """Forward without gradients.

        Args:
            visit: called with the hidden states of each microbatch, in order, on the last pipeline stage.
        """

    @abstractmethod
    def accumulate_gradients(
        self,
        microbatches: Sequence[Microbatch],
        loss: Callable[[Microbatch, Tensor], tuple[Tensor, Result]],
    ) -> list[Result]:
        """Forward and backward; then the gradients are those of the whole minibatch: sums over microbatches
        and data-parallel ranks, divided by nothing.

        Args:
            loss: maps the hidden states of a microbatch to its share of the objective, and what to return.

        Returns:
            The second results of `loss`, in order; empty on the other pipeline stages.
        """

    @abstractmethod
    def score(self, microbatch: Microbatch, hidden_O1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of all trained tokens, float32 [R], differentiable.

        Called on the last pipeline stage, by all ranks that share the microbatch.
        """

    @abstractmethod
    def values(self, microbatch: Microbatch, hidden_O1: Tensor) -> Tensor:
        """The value before each trained token, float32 [R], differentiable. Called as score."""

    @abstractmethod
    def whole_gradients(self) -> dict[str, Tensor]:
        """Gradients of this rank's parameters, fp32, by name: views that the next pass overwrites."""

    @abstractmethod
    def gradient_buffers(self) -> Iterable[Tensor]:
        """Memory of its gradients, written before it is read. Not collective."""

    @abstractmethod
    def optimizer(self, config: OptimizerConfig, num_steps: int) -> Optimizer:
        """One for the present weights, which are copied where they are not fp32.

        Args:
            num_steps: length of the learning-rate schedule.
        """

    @abstractmethod
    def routing(self, config: MoEConfig) -> Routing: ...

    @abstractmethod
    def without_adapters(self) -> AbstractContextManager[None]:
        """Inside, the model is the one that its adapters were added to."""


class Backend(ABC):
    """A rank that has joined the others of its group, for models that are sharded alike."""

    setup: RankSetup
    device: torch.device
    layout: TrainerLayout
    mesh: Mesh
    partition: TokenPartition
    """How microbatches are packed for these ranks."""

    @abstractmethod
    def scope(self) -> AbstractContextManager[object]:
        """Around everything that computes, in the thread that does. Not collective."""

    @abstractmethod
    def sharing(self, setup: RankSetup) -> "Backend":
        """The same ranks for another model, of another `setup` with as many ranks."""

    @abstractmethod
    def build(
        self, *, value_head: bool = False, trained: bool = True, lora: LoraConfig | None = None
    ) -> Model:
        """
        Args:
            value_head: one number in place of the vocabulary.
            trained: it has memory for gradients.
            lora: adapters, drawn from the seed; the rest is frozen. None: all is trained.

        Raises:
            LayoutError: the model has no linear layer that is to have an adapter.
        """

    @abstractmethod
    def written(self, layout: Layout) -> tuple[set[str], set[str]]:
        """Tensors of a layout of which this rank writes a checkpoint's stretch: if they are trained, and if
        not. Of what several ranks hold alike, one writes it. Not collective."""

    @abstractmethod
    def random_state(self) -> dict[str, Tensor]:
        """Of this rank, by any names. Not collective."""

    @abstractmethod
    def set_random_state(self, states: Mapping[str, Tensor]) -> None: ...

    @abstractmethod
    def reseed(self, digest: bytes) -> None:
        """Begin random numbers anew, from at least 8 random bytes. Not collective."""

    @abstractmethod
    def close(self) -> None:
        """Leave the other ranks; the models are of no use afterwards."""

    def load(self, batch: RankBatch) -> LoadedBatch:
        """Not collective."""
        return LoadedBatch(batch, self.mesh.dp_rank, self.device, self.partition)

    def export(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write weights of `layout` in Hugging Face format, beside what the model folder has besides."""
        source, rank = self.setup.model_folder, self.setup.rank
        export_hf(folder, self.layout, rank, tensors, source_folder=source, barrier=dist.barrier)


class BackendKind(Protocol):
    """A backend from outside the project: what actor.backend names as module:Kind. It is made without
    arguments and has no state. Its module imports no torch, since configs are checked and plans made with it.
    """

    layout: type[TrainerLayout]

    def open(self, setup: RankSetup) -> Backend:
        """As `open` below."""
        ...


Trained = tuple[Model, Optimizer]


def open(setup: RankSetup) -> Backend:
    """Join the other ranks of a group and seed. *Collective*.

    Raises:
        ResourceError: the device of the setup is not there, or lacks the FP8 that is asked for, or torch sees
            one and the setup names none.
        LayoutError, ModelError: the model cannot be sharded as asked, or has a part that is not supported.
        ConfigError: the config speaks of experts, of which the model has none.
        UserCodeError: a backend from outside the project raises; so do its models later.
    """
    name = setup.actor.backend
    if ":" not in name:
        return importlib.import_module(module_of(name)).open(setup)
    kind: Any = Guarded(kind_outside(name), name, where="actor.backend", makes=_MAKES)
    return kind.open(setup)


_MAKES = ("open", "sharing", "build", "optimizer", "routing")
