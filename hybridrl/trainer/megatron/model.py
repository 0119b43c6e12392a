"""The policy: Megatron's GPT model on one pipeline stage, with outputs only where a token is trained on.

Shape letters: T packed tokens, R trained tokens, V vocabulary entries of this rank.
"""

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import Float16Module, MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.megatron.layers import layer_spec
from hybridrl.trainer.megatron.packing import Microbatch, Packing
from hybridrl.trainer.megatron.rope import PackedRotary


class PolicyModel(GPTModel):
    """GPT that leaves its output layer to the caller, who decides how much of the logits is held."""

    def __init__(
        self, config: TransformerConfig, spec: ModelSpec, padded_vocab_size: int, *, value_head: bool
    ) -> None:
        first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
        super().__init__(
            config,
            layer_spec(config, spec.num_layers // config.pipeline_model_parallel_size),
            vocab_size=padded_vocab_size,
            max_sequence_length=spec.max_positions,
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=spec.tied and not value_head,
            position_embedding_type="rope",
        )
        self.rotary_pos_emb = PackedRotary(spec)
        if value_head and last:
            self.register_module("output_layer", None)
            self.value_head = torch.nn.Linear(config.hidden_size, 1, bias=False, dtype=config.params_dtype)
        self.share = padded_vocab_size // config.tensor_model_parallel_size
        """Vocabulary entries of every tensor-parallel rank, padding included."""

        self.first_entry = self.share * parallel_state.get_tensor_model_parallel_rank()
        self.num_entries = max(0, min(self.share, spec.vocab_size - self.first_entry))

    def _postprocess(self, hidden_states: Tensor, packed_seq_params: Packing, **unused: Any) -> Tensor:
        """On the last stage, what the output layer predicts trained tokens from, [R, 1, hidden size]."""
        return (
            hidden_states.index_select(0, packed_seq_params.predict_R) if self.post_process else hidden_states
        )

    def logits(self, hidden_R1: Tensor) -> Tensor:
        """Output layer without the padding of the vocabulary, [R, V]. *Collective*, tensor-parallel ranks."""
        weight = self.output_weight
        logits_R1V, _ = self.output_layer(hidden_R1.to(weight.dtype), weight=weight)
        return logits_R1V.squeeze(1)[:, : self.num_entries]

    def values(self, hidden_R1: Tensor) -> Tensor:
        """Of a model with a value head, float32 [R]; the same on all tensor-parallel ranks."""
        return self.value_head(hidden_R1.to(self.value_head.weight.dtype)).float().flatten()

    def sharded_state_dict(self, *args: Any, **options: Any) -> Any:
        """For checkpoints. Megatron's language models have an output layer, which a value head replaces."""
        if hasattr(self, "value_head"):
            return MegatronModule.sharded_state_dict(self, *args, **options)
        return super().sharded_state_dict(*args, **options)

    @property
    def output_weight(self) -> Tensor:
        """[V + padding, hidden size]"""
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight


def build(
    config: TransformerConfig,
    spec: ModelSpec,
    padded_vocab_size: int,
    device: torch.device,
    *,
    value_head: bool = False,
) -> DistributedDataParallel:
    """This stage's model, with all parameters 0, inside Megatron's gradient buffers of fp32. *Collective*.

    Args:
        value_head: one number in place of the vocabulary.
    """
    model: torch.nn.Module = PolicyModel(config, spec, padded_vocab_size, value_head=value_head).to(device)
    _mark_tensor_parallel(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    if config.bf16:
        model = Float16Module(config, model)
    options = DistributedDataParallelConfig(grad_reduce_in_fp32=True, use_distributed_optimizer=True)
    return DistributedDataParallel(config, options, model)


def _mark_tensor_parallel(model: torch.nn.Module) -> None:
    """Tell weights that are cut over ranks from those that all have, which count once in the gradient norm.

    Megatron does so while it initialises weights, which we skip.
    """
    dims = {ColumnParallelLinear: 0, VocabParallelEmbedding: 0, RowParallelLinear: 1}
    for module in model.modules():
        if type(module) in dims and module.weight is not None:
            set_tensor_model_parallel_attributes(
                module.weight, is_parallel=True, dim=dims[type(module)], stride=1
            )


def policy_model(model: torch.nn.Module) -> PolicyModel:
    """The model inside Megatron's wrappers."""
    inner: Any = model
    while not isinstance(inner, PolicyModel):
        inner = inner.module
    return inner


def named_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters of this rank under their names in the whole model: layers carry their global index."""
    inner = policy_model(model)
    for name, parameter in inner.named_parameters():
        if name.startswith("decoder.layers."):
            _, _, local, rest = name.split(".", 3)
            name = f"decoder.layers.{inner.decoder.layers[int(local)].layer_number - 1}.{rest}"
        yield name, parameter


def forward(model: torch.nn.Module, microbatch: Microbatch) -> Tensor:
    """Hidden states: on the last pipeline stage those before trained tokens, elsewhere all."""
    return model(
        input_ids=microbatch.token_T.unsqueeze(0),
        position_ids=microbatch.packing.position_T.unsqueeze(0),
        attention_mask=None,
        packed_seq_params=microbatch.packing,
    )
