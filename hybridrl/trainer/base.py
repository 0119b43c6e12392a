"""The interface of a trainer backend.

A backend is a folder in this package whose backend.py has `open(setup) -> Backend`, or a BackendKind outside
the project. Policy, critic, reference, reward model, SFT and RM training use these classes alone.
Every method is *collective* (all ranks call it, in the same order) unless its docstring says otherwise.
Shape letters: U trained tokens of a batch, R trained tokens of one microbatch, O trained tokens whose
prediction is on this rank.
"""

import contextlib
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
from hybridrl.errors import ConfigError
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.base import Layout
from hybridrl.layout.trainers import TrainerLayout, kind_outside
from hybridrl.models.spec import read, without_vocabulary
from hybridrl.outside import Guarded, imported
from hybridrl.reshard.checkpoint import export_hf, load_hf
from hybridrl.trainer.loaded import LoadedBatch
from hybridrl.trainer.mesh import Mesh
from hybridrl.trainer.places import Microbatch, TokenPartition
from hybridrl.trainer.setup import RankSetup, module_of

Result = TypeVar("Result")

WEIGHTS = "weights"
"""The quantity that is the parameters themselves, in the precision in which they are updated."""


class Optimizer(Protocol):
    """Updates the parameters of one model along a learning-rate schedule."""

    num_steps_done: int
    quantities: Sequence[str]
    """Names of the tensors that `flat_ranges` yields for every parameter; WEIGHTS is one of them."""

    def zero_gradients(self) -> None: ...

    def gradient_norm(self) -> float:
        """L2 norm of the accumulated gradients over all ranks; changes no parameter.

        Returns 0 if fp16 overflowed: `step` then changes nothing, and the next loss scale is lower.
        """
        ...

    def step(self, gradient_norm: float) -> float:
        """Clip the gradients by their known norm and update the parameters.

        Returns:
            The learning rate; 0 if fp16 overflowed.
        """
        ...

    def scaling(self) -> dict[str, float]:
        """Metrics of fp16 training: the loss scale from now on, and 1 if the last gradients overflowed.

        Not collective.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Live tensors of this rank's share of the state; the backend chooses the names. Not collective."""
        ...

    def flat_ranges(self) -> Iterator[tuple[Parameter, int, dict[str, Tensor]]]:
        """This rank's share of the optimizer state: (parameter, first element, quantity -> flat fp32 tensor).

        A parameter of which this rank has no share is left out. The tensors are live: whoever writes weights
        into them calls `resume`, which copies them into the model. Not collective.
        """
        ...

    @property
    def progress(self) -> dict[str, Any]:
        """The position in the schedule, which `resume` takes; JSON."""
        ...

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Continue the schedule at `progress`; the caller has written the state into `flat_ranges` before."""
        ...


class Routing(Protocol):
    """Controls the routers of a mixture-of-experts model over the passes of a batch.

    A model without experts does nothing in any of these methods.
    """

    def keeping(self, blocks: Sequence[TokenBlock], *, share: bool) -> AbstractContextManager[None]:
        """A context around the first pass over a new batch: expert choices are recorded for later replay.

        With actor.moe.router_replay = rollout, the engine's choices are used in this pass already.

        Args:
            share: a token may be on another rank in a later pass, so ranks exchange what they recorded.

        Raises:
            ConfigError: the engine's choices are to be used, and the blocks do not carry them.
        """
        ...

    def training(self, num_sequences: int) -> AbstractContextManager[None]:
        """A context around the passes of one optimizer step.

        Args:
            num_sequences: sequences of the step over all ranks.
        """
        ...

    def agreement(self) -> dict[str, float]:
        """Metric: how often router and engine chose different experts since the batch was loaded."""
        ...

    def metrics(self) -> dict[str, float]:
        """Metrics of the last optimizer step."""
        ...


class NoRouting:
    """Routing of a model without experts."""

    def keeping(self, blocks: Sequence[TokenBlock], *, share: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def training(self, num_sequences: int) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def agreement(self) -> dict[str, float]:
        return {}

    def metrics(self) -> dict[str, float]:
        return {}


class Model(ABC):
    """One model on this rank. All parameters are 0 until they are loaded."""

    layout: TrainerLayout
    adapters: AdapterLayout | None
    """Layout of the adapters, if only they are trained; None if the model itself is trained."""

    rank: int

    @property
    def trained(self) -> TrainerLayout | AdapterLayout:
        """Layout of the trained parameters: of the adapters if there are any, otherwise of the model."""
        return self.adapters or self.layout

    @abstractmethod
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Parameters of this rank, by their names in `layout` and `adapters`. Not collective."""

    def tensors(self) -> dict[str, Tensor]:
        """The live parameters that are in `layout`. Not collective."""
        names = self.layout.shards(self.rank)
        return {name: parameter.data for name, parameter in self.named_parameters() if name in names}

    @abstractmethod
    def weights(self) -> Mapping[str, Tensor]:
        """`tensors` with the adapters merged in. A weight with an adapter is computed on access."""

    def load(self, folder: Path, into: Mapping[str, Tensor] | None = None) -> None:
        """Load the weights of a model folder. A value head that the folder lacks stays 0.

        Args:
            into: tensors to fill, with the names and shapes of `tensors`; None fills the parameters.
        """
        layout = self.layout
        if layout.spec.value_head and not read(folder).value_head:
            layout = replace(layout, spec=without_vocabulary(layout.spec, head="none"))
        load_hf(folder, layout, self.rank, self.tensors() if into is None else into)

    def copy(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the weights whose names this model has, and ignore the others. Not collective."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])

    @contextlib.contextmanager
    def computing_with(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the model computes with these weights, by name; afterwards with its own again, and the
        contents of both are what they were. Not collective."""
        own = self.tensors()
        self._point_to(weights)
        try:
            yield
        finally:
            self._point_to(own)

    def _point_to(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self.named_parameters():
            if name in weights:
                parameter.data = weights[name]

    @abstractmethod
    def evaluate(
        self, microbatches: Sequence[Microbatch], visit: Callable[[Microbatch, Tensor], None]
    ) -> None:
        """Run the forward pass without gradients.

        Args:
            visit: called with the hidden states of each microbatch, in order, on the last pipeline stage.
        """

    @abstractmethod
    def accumulate_gradients(
        self,
        microbatches: Sequence[Microbatch],
        loss: Callable[[Microbatch, Tensor], tuple[Tensor, Result]],
    ) -> list[Result]:
        """Run forward and backward over a minibatch.

        Afterwards the gradients are sums over all microbatches and data-parallel ranks. They are not divided:
        `loss` has divided by the totals of the minibatch already.

        Args:
            loss: maps the hidden states of a microbatch to its share of the objective and a result.

        Returns:
            The results of `loss`, in order; empty on all but the last pipeline stage.
        """

    @abstractmethod
    def score(self, microbatch: Microbatch, hidden_O1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy of all predicted tokens of a microbatch, float32 [P], differentiable:
        of the R trained tokens, then of the E observed ones.

        Called on the last pipeline stage, by all ranks that share the microbatch.
        """

    def head_logp(
        self, microbatch: Microbatch, hidden_O1: Tensor, logp_P: Tensor, head_PK: Tensor, temperature: float
    ) -> Tensor:
        """Log-probability of the tokens of a head at every predicted token, float32 [P, K], differentiable.
        It is called like `score`, after it.

        Args:
            logp_P: what `score` returned.
            head_PK: int64 token ids.

        Raises:
            ConfigError: this backend does not compute it.
        """
        raise self._no_heads()

    def likeliest(self, microbatch: Microbatch, hidden_O1: Tensor, count: int) -> Tensor:
        """Ids of the likeliest tokens at every predicted token, int64 [P, count]; else like `head_logp`."""
        raise self._no_heads()

    def _no_heads(self) -> ConfigError:
        what = f"{type(self).__module__} computes log-probabilities of sampled tokens only"
        return ConfigError(what, where="actor.backend", fix="megatron or fsdp, or another algorithm.loss")

    @abstractmethod
    def values(self, microbatch: Microbatch, hidden_O1: Tensor) -> Tensor:
        """The value before each predicted token, float32 [P], differentiable. It is called like `score`."""

    @abstractmethod
    def whole_gradients(self) -> dict[str, Tensor]:
        """Whole gradients of this rank's parameters, fp32, by name: views that the next pass overwrites."""

    @abstractmethod
    def gradient_buffers(self) -> Iterable[Tensor]:
        """Gradient memory of this model. Every pass writes it before reading it. Not collective."""

    @abstractmethod
    def optimizer(self, config: OptimizerConfig, num_steps: int) -> Optimizer:
        """An optimizer of the present weights, which it copies to fp32 if they are not fp32.

        Args:
            num_steps: length of the learning-rate schedule.
        """

    @abstractmethod
    def routing(self, config: MoEConfig) -> Routing: ...

    @abstractmethod
    def without_adapters(self) -> AbstractContextManager[None]:
        """A context in which the adapters are off: the model computes as the base model."""


class Backend(ABC):
    """One rank of a joined group. All models that it builds have the same parallel layout."""

    setup: RankSetup
    device: torch.device
    layout: TrainerLayout
    mesh: Mesh
    partition: TokenPartition
    """How microbatches are packed for these ranks."""

    @abstractmethod
    def scope(self) -> AbstractContextManager[object]:
        """A context around all computation, entered in the thread that computes. Not collective."""

    @abstractmethod
    def sharing(self, setup: RankSetup) -> "Backend":
        """A backend on the same ranks for another model, whose `setup` has the same number of ranks."""

    @abstractmethod
    def build(
        self, *, value_head: bool = False, trained: bool = True, lora: LoraConfig | None = None
    ) -> Model:
        """
        Args:
            value_head: the output is one number per token in place of logits.
            trained: the model gets memory for gradients.
            lora: adapters to train, initialised from the seed; all else is frozen. None trains all weights.

        Raises:
            LayoutError: the model has none of the linear layers that `lora` names.
        """

    @abstractmethod
    def written(self, layout: Layout) -> tuple[set[str], set[str]]:
        """Names of the tensors of which this rank writes its flat range to a checkpoint.

        The first set holds if the tensors are trained, the second one if they are not. Exactly one rank
        writes what several ranks hold a copy of. Not collective.
        """

    @abstractmethod
    def random_state(self) -> dict[str, Tensor]:
        """Random-number states of this rank; the backend chooses the names. Not collective."""

    @abstractmethod
    def set_random_state(self, states: Mapping[str, Tensor]) -> None: ...

    @abstractmethod
    def reseed(self, digest: bytes) -> None:
        """Seed all random-number generators from `digest`, at least 8 random bytes. Not collective."""

    @abstractmethod
    def close(self) -> None:
        """Leave the process groups. The models cannot be used afterwards."""

    def load(self, batch: RankBatch, *, observed: bool = False) -> LoadedBatch:
        """Pack a batch for this rank. Not collective. `observed` is that of PackedBatch."""
        partition, actor = self.partition, self.setup.actor
        given = (batch, self.mesh.dp_rank, self.device, partition, self.setup.model.vision)
        replays = actor.moe.router_replay == "rollout"
        return LoadedBatch(
            *given, observed=observed, share_prompts=actor.share_prompts, replays_experts=replays
        )

    def export(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        """Write weights of `layout` in Hugging Face format, and copy the other files of the model folder."""
        source, rank = self.setup.model_folder, self.setup.rank
        export_hf(folder, self.layout, rank, tensors, source_folder=source, barrier=dist.barrier)


class BackendKind(Protocol):
    """A backend outside the project, which actor.backend names as module:Kind.

    The class is instantiated without arguments and has no state. Its module must not import torch, because
    config checks and `hybridrl plan` import it.
    """

    layout: type[TrainerLayout]

    def open(self, setup: RankSetup) -> Backend:
        """Same contract as `open` below."""
        ...


Trained = tuple[Model, Optimizer]


def open(setup: RankSetup) -> Backend:
    """Join the process groups of a role and seed the random numbers. *Collective*.

    Raises:
        ResourceError: the device of the setup does not exist or lacks the requested FP8 recipe, or the setup
            names no device although torch sees one.
        LayoutError, ModelError: the model cannot be sharded as asked, or has a part that is not supported.
        ConfigError: the config sets options of experts, and the model has none.
        UserCodeError: a backend outside the project raised; later calls of its models raise it too.
    """
    name = setup.actor.backend
    if ":" not in name:
        return imported(module_of(name)).open(setup)
    kind: Any = Guarded(kind_outside(name), name, where="actor.backend", makes=_MAKES)
    return kind.open(setup)


_MAKES = ("open", "sharing", "build", "optimizer", "routing")
