"""A transformers model for packed sequences, sharded layer by layer over the ranks of a layout.

Shape letters: T packed tokens, O tokens whose output predicts a trained token, H hidden size, V vocabulary
entries of this rank.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from hybridrl.errors import ModelError
from hybridrl.layout.adapters import AdapterLayout
from hybridrl.layout.fsdp import FSDPLayout
from hybridrl.models.vision import VisionSpec
from hybridrl.trainer.fsdp import attention, lora, tensor_parallel, vision
from hybridrl.trainer.fsdp.attention import Context
from hybridrl.trainer.fsdp.groups import Groups
from hybridrl.trainer.fsdp.router import Router, replace_routers
from hybridrl.trainer.places import Microbatch
from hybridrl.trainer.tower import Mode, is_trained

LEAST_UNIT = 2**20
"""Fewest elements that are gathered at once. Below that, the time of a collective is that of its call."""

_ROTARY = ("rotary_emb", "language_model.rotary_emb", "visual.rotary_pos_emb")
"""Modules whose buffers follow from the config."""


class PackedNetwork(nn.Module):
    """Parameters have the names of a Hugging Face checkpoint; the experts of a layer are stacked.

    The output layer is left to the caller, who decides how much of the logits is held. Its weight is whole
    from the forward pass on, apart from tensor parallelism, until `reshard` or the end of the backward pass.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tied: bool,
        value_head: bool,
        dtype: torch.dtype,
        context: Context | None = None,
        tower: VisionSpec | None = None,
    ) -> None:
        """
        Args:
            folder: whose config.json says what the model is; no weights are read.
            dtype: of the parameters.
            tower: the part that reads pictures; None: the model reads text only.
        """
        super().__init__()
        config = AutoConfig.from_pretrained(folder)
        _leave_nothing_to_chance(config)
        kernels = attention.NAME if tower is None else vision.ATTENTION
        body = AutoModel.from_config(config, dtype=dtype, attn_implementation=kernels)
        self._stem, self._context, self._tower = body.base_model_prefix, context, tower
        self.add_module(self._stem, body)
        body.get_input_embeddings().padding_idx = None  # whose row would get no gradient
        self.output = "score" if value_head else "lm_head"
        sizes = self.text.config
        rows = 1 if value_head else sizes.vocab_size
        self.add_module(self.output, nn.Linear(sizes.hidden_size, rows, bias=False, dtype=dtype))
        self.routers: list[Router] = []
        """The routers of the layers with experts, if they have been replaced."""

        self._tied = tied and not value_head
        self.tie()

    def tie(self) -> None:
        """Make the output layer of a tied model use the weight of the embedding."""
        if self._tied:
            self.get_submodule(self.output).weight = self.body.get_input_embeddings().weight

    @property
    def body(self) -> Any:
        """The model of transformers, without an output layer."""
        return self.get_submodule(self._stem)

    @property
    def text(self) -> Any:
        """The text model: the part of `body` that reads tokens."""
        return self.body if self._tower is None else self.body.language_model

    @property
    def layers(self) -> nn.ModuleList:
        """The decoder layers."""
        count, lists = self.text.config.num_hidden_layers, self.text.children()
        found = [module for module in lists if isinstance(module, nn.ModuleList) and len(module) == count]
        if len(found) != 1:
            raise ModelError(
                f"{type(self.body).__name__} has {len(found)} lists of {count} layers, not one",
                fix="remove actor.backend, or use another model",
            )
        return found[0]

    def forward(self, microbatch: Microbatch) -> Tensor:
        """Hidden states before trained tokens, [O, 1, H]."""
        packing = microbatch.packing
        for router in self.routers:
            router.packing = packing
        hidden_1TH = self.text(
            **self._inputs(microbatch), use_cache=False, runs=packing.runs, context=self._context
        ).last_hidden_state
        return hidden_1TH.transpose(0, 1).index_select(0, packing.predict_O)

    def _inputs(self, microbatch: Microbatch) -> dict[str, Any]:
        if self._tower is not None:
            return vision.inputs(self.body, self._tower, microbatch)
        position_1T = microbatch.packing.position_T.unsqueeze(0)
        return {"input_ids": microbatch.token_T.unsqueeze(0), "position_ids": position_1T}

    @property
    def output_weight(self) -> Tensor:
        """[V, H] with the padding of the vocabulary, or [1, H] of a value head."""
        return cast(Tensor, self.get_submodule(self.output).weight)

    def logits(self, hidden_O1H: Tensor, num_entries: int | None = None) -> Tensor:
        """Logits of all or the first entries of this rank, [O, V], or [O, 1] of a value head."""
        return (hidden_O1H.squeeze(1) @ self.output_weight.T)[:, :num_entries]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a network is built."""

    folder: Path
    layout: FSDPLayout
    adapters: AdapterLayout | None
    """Adapters to train; None: the network itself is trained, or nothing."""

    value_head: bool
    trained: bool
    """The shards are fp32, whatever the network computes in."""

    recompute: bool
    """The activations of a layer are computed again in the backward pass."""

    gathers_once: bool
    """Layers stay gathered until `reshard`, or until a backward pass that ends with one."""

    on_host: bool
    """The shards are in host memory, and a layer is copied to the device when it is gathered."""

    compute_dtype: torch.dtype
    context: Context
    tower: Mode
    """What is trained of a vision tower, if the model has one."""

    @property
    def shardings(self) -> dict[str, Any]:
        """How tensor parallelism shards each parameter."""
        found = tensor_parallel.shardings(self.layout)
        return found | (tensor_parallel.shardings(self.adapters) if self.adapters else {})

    def trains(self, name: str) -> bool:
        """Whether a parameter of the network gets gradients."""
        if self.adapters is not None:
            return ".adapter." in name
        inside = vision.in_tower(name)
        return self.trained and (inside is None or is_trained(inside, self.tower))


def build(plan: Plan, groups: Groups, device: torch.device) -> PackedNetwork:
    """A network whose parameters are this rank's shards, all 0. *Collective*; no rank ever holds it whole."""
    dtype = torch.float32 if plan.trained else plan.compute_dtype
    with torch.device("meta"):
        network = PackedNetwork(
            plan.folder,
            tied=plan.layout.spec.tied,
            value_head=plan.value_head,
            dtype=dtype,
            context=plan.context,
            tower=plan.layout.spec.vision,
        )
        if plan.adapters:
            lora.attach(network, plan.adapters)
        tensor_parallel.parallelize(network, plan.shardings, groups.tp, plan.layout.spec)
    network.tie()  # tensor parallelism replaces the weights
    network.train()
    if plan.recompute:
        network.body.gradient_checkpointing_enable({"use_reentrant": False})
    counts = groups.tp.get_local_rank() == 0
    network.routers = replace_routers(
        network.layers, plan.layout.spec, context=groups.cp, counts=counts, device=device
    )
    _shard(network, groups, plan, device)
    network.to_empty(device=torch.device("cpu") if plan.on_host else device)
    make_buffers(network.body, device)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(plan.trains(name)).zero_()
    return network


def root(network: PackedNetwork) -> FSDPModule:
    """The same, with what fully_shard added to it."""
    return cast(FSDPModule, network)


def _shard(network: PackedNetwork, groups: Groups, plan: Plan, device: torch.device) -> None:
    """Each layer gathers its weights while it computes, unless the plan says otherwise; embedding, last norm,
    output layer and vision tower stay gathered until the backward pass has come to them. Small layers go
    together."""
    policy = MixedPrecisionPolicy(param_dtype=plan.compute_dtype, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mesh": groups.weights, "mp_policy": policy}
    if plan.on_host:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    for unit in units(network.layers):
        fully_shard(unit, reshard_after_forward=not plan.gathers_once, **options)
    fully_shard(network, reshard_after_forward=False, **options)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # Gradients are sums. Each of the two alone leaves a mean, or an operation that gloo lacks.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def units(layers: Iterable[nn.Module]) -> Iterator[list[nn.Module]]:
    """Consecutive layers that are gathered together, LEAST_UNIT elements or more. Fewer at the end are left
    to be gathered with embedding and output layer."""
    unit, size = [], 0
    for layer in layers:
        unit.append(layer)
        size += sum(parameter.numel() for parameter in layer.parameters())
        if size >= LEAST_UNIT:
            yield unit
            unit, size = [], 0


def make_buffers(body: Any, device: torch.device) -> None:
    """Make the rotary angles anew, which `to_empty` leaves undefined.

    Raises:
        ModelError: the model has other buffers too.
    """
    if others := [name for name, _ in body.named_buffers() if name.rpartition(".")[0] not in _ROTARY]:
        raise ModelError(
            f"{type(body).__name__} has buffers that no checkpoint has: {', '.join(others)}",
            fix="remove actor.backend, or use another model",
        )
    modules: dict[str, Any] = dict(body.named_modules())
    for name in (name for name in _ROTARY if name in modules):
        owner, _, last = name.rpartition(".")
        setattr(modules[owner], last, type(modules[name])(config=modules[owner].config).to(device))


def _leave_nothing_to_chance(config: Any) -> None:
    """Switch dropout and noise off: the policy that is trained is the one that sampled."""
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            _leave_nothing_to_chance(part)
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or key.endswith(("_pdrop", "_jitter_noise"))):
            setattr(config, key, 0.0)
