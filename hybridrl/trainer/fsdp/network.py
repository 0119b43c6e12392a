"""A transformers model for packed sequences, sharded layer by layer over all ranks.

Shape letters: T packed tokens, O tokens whose output predicts a trained token, H hidden size, V vocabulary.
"""

from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import AutoConfig, AutoModel

from hybridrl.errors import ModelError
from hybridrl.trainer.fsdp import attention
from hybridrl.trainer.packing import Microbatch


class PackedNetwork(nn.Module):
    """Parameters have the names of a Hugging Face checkpoint.

    The output layer is left to the caller, who decides how much of the logits is held. Its weight is whole
    from the forward pass on, until `reshard` or the end of the backward pass.
    """

    def __init__(self, folder: Path, *, tied: bool, value_head: bool, dtype: torch.dtype) -> None:
        """
        Args:
            folder: whose config.json says what the model is; no weights are read.
            dtype: of the parameters.
        """
        super().__init__()
        config = AutoConfig.from_pretrained(folder)
        _leave_nothing_to_chance(config)
        body = AutoModel.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
        self._stem = body.base_model_prefix
        self.add_module(self._stem, body)
        self.output = "score" if value_head else "lm_head"
        rows = 1 if value_head else config.vocab_size
        self.add_module(self.output, nn.Linear(config.hidden_size, rows, bias=False, dtype=dtype))
        if tied and not value_head:
            self.get_submodule(self.output).weight = self.body.get_input_embeddings().weight

    @property
    def body(self) -> Any:
        """The model of transformers, without an output layer."""
        return self.get_submodule(self._stem)

    @property
    def layers(self) -> nn.ModuleList:
        """Its decoder layers."""
        count, lists = self.body.config.num_hidden_layers, self.body.children()
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
        hidden_1TH = self.body(
            input_ids=microbatch.token_T.unsqueeze(0),
            position_ids=packing.position_T.unsqueeze(0),
            use_cache=False,
            runs=packing.runs,
        ).last_hidden_state
        return hidden_1TH.transpose(0, 1).index_select(0, packing.predict_O)

    @property
    def output_weight(self) -> Tensor:
        """[V, H], or [1, H] of a value head."""
        return cast(Tensor, self.get_submodule(self.output).weight)

    def logits(self, hidden_O1H: Tensor) -> Tensor:
        """[O, V], or [O, 1] of a value head."""
        return hidden_O1H.squeeze(1) @ self.output_weight.T


def build(
    folder: Path,
    device: torch.device,
    compute_dtype: torch.dtype,
    *,
    tied: bool,
    value_head: bool,
    trained: bool,
    recompute: bool,
) -> PackedNetwork:
    """A network whose parameters are this rank's shards, all 0. *Collective*; no rank ever holds it whole.

    Args:
        trained: the shards are fp32, whatever the network computes in.
        recompute: the activations of a layer are computed again in the backward pass.
    """
    dtype = torch.float32 if trained else compute_dtype
    with torch.device("meta"):
        network = PackedNetwork(folder, tied=tied, value_head=value_head, dtype=dtype)
    network.train()
    if recompute:
        network.body.gradient_checkpointing_enable({"use_reentrant": False})
    _shard(network, device, compute_dtype)
    network.to_empty(device=device)
    make_buffers(network.body, device)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.requires_grad_(trained).zero_()
    return network


def root(network: PackedNetwork) -> FSDPModule:
    """The same, with what fully_shard added to it."""
    return cast(FSDPModule, network)


def _shard(network: PackedNetwork, device: torch.device, compute_dtype: torch.dtype) -> None:
    """Each layer gathers its weights while it computes; embedding, last norm and output layer stay gathered
    until the backward pass has come to them."""
    assert dist.group.WORLD is not None, "the ranks have joined each other"
    mesh = DeviceMesh.from_group(dist.group.WORLD, device.type)
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for layer in network.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # Gradients are sums. Each of the two alone leaves a mean, or an operation that gloo lacks.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def make_buffers(body: Any, device: torch.device) -> None:
    """Make the rotary angles anew, which `to_empty` leaves undefined.

    Raises:
        ModelError: the model has other buffers too.
    """
    if others := [name for name, _ in body.named_buffers() if not name.startswith("rotary_emb.")]:
        raise ModelError(
            f"{type(body).__name__} has buffers that no checkpoint has: {', '.join(others)}",
            fix="remove actor.backend, or use another model",
        )
    if hasattr(body, "rotary_emb"):
        body.rotary_emb = type(body.rotary_emb)(config=body.config).to(device)


def _leave_nothing_to_chance(config: Any) -> None:
    """Switch dropout off: the policy that is trained is the one that sampled."""
    for key, value in config.to_dict().items():
        if isinstance(value, float) and ("dropout" in key or key.endswith("_pdrop")):
            setattr(config, key, 0.0)
