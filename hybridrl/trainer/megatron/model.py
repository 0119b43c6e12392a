"""The policy: Megatron's GPT model on one pipeline stage, with outputs only where a token is trained on.

Shape letters: T packed tokens of this rank, O tokens that this rank predicts, V vocabulary entries of
this rank.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from hybridrl.layout.adapters import AdapterLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.trainer.context import own_predicted
from hybridrl.trainer.head_logprob import head_gaps, likeliest
from hybridrl.trainer.linear_logprob import Shard, output_logprob
from hybridrl.trainer.megatron import lora
from hybridrl.trainer.megatron.context import from_context
from hybridrl.trainer.megatron.layers import MegatronPacking, layer_specs
from hybridrl.trainer.megatron.parts import MEGATRONS, LayerSpecs
from hybridrl.trainer.megatron.rope import PackedRotary
from hybridrl.trainer.megatron.vision import Placed, build_tower, keep_frequencies
from hybridrl.trainer.places import Microbatch, Packing
from hybridrl.trainer.tower import Mode, encode

Stage = list[DistributedDataParallel]
"""The model on one pipeline stage: one model chunk, or several with virtual pipeline parallelism."""


class PolicyModel(GPTModel):
    """GPT without the call of its output layer: the caller decides how many logits are held at once."""

    def __init__(
        self,
        config: TransformerConfig,
        spec: ModelSpec,
        padded_vocab_size: int,
        parts: LayerSpecs,
        *,
        chunk: int | None,
        value_head: bool,
        vision: Mode = "frozen",
        banned: Sequence[int] = (),
    ) -> None:
        """
        Args:
            parts: classes that the layers are built from.
            chunk: index of the model chunk on this stage; None if there is one chunk only.
            vision: what is trained of a vision tower, if the model has one.
            banned: tokens that cannot be sampled; their probability is 0.
        """
        here = {"ignore_virtual": False, "vp_stage": chunk}
        first = parallel_state.is_pipeline_first_stage(**here)
        last = parallel_state.is_pipeline_last_stage(**here)
        super().__init__(
            config,
            layer_specs(config, spec, _layers(config, chunk), parts),
            vocab_size=padded_vocab_size,
            max_sequence_length=spec.max_positions,
            pre_process=first,
            post_process=last,
            share_embeddings_and_output_weights=spec.tied and not value_head,
            position_embedding_type="rope",
            vp_stage=chunk,
        )
        self.rotary_pos_emb = PackedRotary(spec)
        self._vision = spec.vision
        if spec.vision is not None and first:
            self.visual = build_tower(spec, config, vision)
        self.soft_cap = spec.output_soft_cap
        scale = torch.tensor(spec.hidden_size**0.5, dtype=config.params_dtype).item()
        self._embedding_scale = scale if spec.scaled_embedding else None
        if value_head and last:
            self.register_module("output_layer", None)
            self.value_head = torch.nn.Linear(config.hidden_size, 1, bias=False, dtype=config.params_dtype)
        if last and not value_head:
            self.output_layer.sequence_parallel = False  # _postprocess gathers its input
        self.share = padded_vocab_size // config.tensor_model_parallel_size
        """Vocabulary entries of every tensor-parallel rank, padding included."""

        self.first_entry = self.share * parallel_state.get_tensor_model_parallel_rank()
        self.num_entries = max(0, min(self.share, spec.vocab_size - self.first_entry))
        self._banned = banned

    def _preprocess(self, *args: Any, packed_seq_params: MegatronPacking, **options: Any) -> Any:
        """Megatron's own, with scaled embeddings and features of pictures for the families that have them."""
        hidden_states, *rest = super()._preprocess(*args, packed_seq_params=packed_seq_params, **options)
        if hidden_states is not None and self._embedding_scale is not None:
            hidden_states = hidden_states * self._embedding_scale
        if hidden_states is not None and packed_seq_params.pictures is not None:
            packed_seq_params.placed = self._place(packed_seq_params)
            hidden_states = packed_seq_params.placed.put(hidden_states)
        return hidden_states, *rest

    def _place(self, packing: MegatronPacking) -> Placed:
        assert self._vision is not None and packing.pictures is not None and packing.feature_T is not None
        device = packing.feature_T.device
        features_FH, deep = encode(self.visual, self._vision, packing.pictures, device)
        return Placed(packing.feature_T, features_FH, deep, sequence_parallel=self.config.sequence_parallel)

    def _postprocess(self, hidden_states: Tensor, packed_seq_params: Packing, **unused: Any) -> Tensor:
        """Select, on the last stage, the hidden states whose outputs are used, [O, 1, hidden size]."""
        if not self.post_process:
            return hidden_states
        if self.config.sequence_parallel:
            # False, because every tensor-parallel rank computes the whole gradient of the result.
            hidden_states = gather_from_sequence_parallel_region(
                hidden_states, tensor_parallel_output_grad=False
            )
        return hidden_states.index_select(0, packed_seq_params.predict_O)

    def logits(self, hidden_O1: Tensor) -> Tensor:
        """Logits without the padding of the vocabulary, [O, V]. *Collective* over tensor-parallel ranks."""
        weight = self.output_weight
        logits_O1V, _ = self.output_layer(hidden_O1.to(weight.dtype), weight=weight)
        logits_OV = logits_O1V.squeeze(1)[:, : self.num_entries]
        if self.soft_cap is not None:
            logits_OV = self.soft_cap * torch.tanh(logits_OV / self.soft_cap)
        return self._shard.without_banned(logits_OV)

    def score(self, microbatch: Microbatch, hidden_O1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Same contract as base.Model.score. *Collective* over tensor- and context-parallel ranks."""
        own_O2 = torch.stack(self._score_own(microbatch.target_O, hidden_O1, temperature), dim=1)
        logp_P, entropy_P = from_context(microbatch, own_O2).unbind(1)
        return logp_P, entropy_P

    def head_logp(
        self, microbatch: Microbatch, hidden_O1: Tensor, logp_P: Tensor, head_PK: Tensor, temperature: float
    ) -> Tensor:
        """Same contract as base.Model.head_logp. *Collective* like `score`."""
        head_OK = own_predicted(microbatch, head_PK, parallel_state.get_context_parallel_rank())
        gap_OK = head_gaps(
            self._output_input(hidden_O1),
            self.output_weight,
            microbatch.target_O,
            head_OK,
            self._shard,
            temperature=temperature,
        )
        return logp_P.unsqueeze(1) + from_context(microbatch, gap_OK)

    def likeliest(self, microbatch: Microbatch, hidden_O1: Tensor, count: int) -> Tensor:
        """Same contract as base.Model.likeliest. *Collective* like `score`."""
        token_OC = likeliest(self._output_input(hidden_O1), self.output_weight, count, self._shard)
        return from_context(microbatch, token_OC)

    def _score_own(self, target_O: Tensor, hidden_O1: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        return output_logprob(
            self._output_input(hidden_O1),
            self.output_weight,
            target_O,
            self._shard,
            temperature=temperature,
            logits=lambda: self.logits(hidden_O1),
        )

    @property
    def _shard(self) -> Shard:
        return Shard(
            first=self.first_entry,
            num_entries=self.num_entries,
            group=parallel_state.get_tensor_model_parallel_group(),
            soft_cap=self.soft_cap,
            banned=self._banned,
        )

    def _output_input(self, hidden_O1: Tensor) -> Tensor:
        """Input of the output layer on every tensor-parallel rank, [O, hidden size]."""
        hidden_OH = hidden_O1.squeeze(1).to(self.output_weight.dtype)
        return copy_to_tensor_model_parallel_region(hidden_OH)

    def values(self, hidden_O1: Tensor) -> Tensor:
        """Values of a model with a value head, float32 [O]; the same on all tensor-parallel ranks."""
        # In bf16, answers to one prompt whose scores differ by less than 1 % would get the same score.
        return F.linear(hidden_O1.float(), self.value_head.weight.float()).flatten()

    def no_loss(self, hidden_O1: Tensor) -> Tensor:
        """A loss of 0 whose backward pass reaches every parameter. *Collective* like `logits`."""
        outputs = self.values if hasattr(self, "value_head") else self.logits
        return outputs(hidden_O1).sum()

    @property
    def output_weight(self) -> Tensor:
        """[V + padding, hidden size]"""
        tied = self.share_embeddings_and_output_weights
        return self.shared_embedding_or_output_weight() if tied else self.output_layer.weight


def _layers(config: TransformerConfig, chunk: int | None) -> range:
    """Layers of a model chunk of this pipeline stage, as indices in the whole model."""
    first = get_transformer_layer_offset(config, vp_stage=chunk)
    return range(first, first + get_num_layers_to_build(config, vp_stage=chunk))


def build(
    config: TransformerConfig,
    spec: ModelSpec,
    padded_vocab_size: int,
    device: torch.device,
    *,
    value_head: bool = False,
    overlap: bool = False,
    parts: LayerSpecs | None = None,
    adapters: AdapterLayout | None = None,
    seed: int = 0,
    vision: Mode = "frozen",
    banned: Sequence[int] = (),
) -> Stage:
    """Build this stage's model with all parameters 0, wrapped with fp32 gradient buffers. *Collective*.

    Args:
        value_head: the output is one number per token in place of logits.
        overlap: gradients are reduced over ranks while the backward pass still runs.
        parts: classes that the layers are built from; None takes those of the device.
        adapters: adapters to train, initialised from the seed; None trains the model itself.
        vision: what is trained of a vision tower, if the model has one.
        banned: tokens that cannot be sampled.
    """
    options = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=overlap
    )
    num_chunks = config.virtual_pipeline_model_parallel_size
    stage = []
    for chunk in [None] if num_chunks is None else range(num_chunks):
        policy = PolicyModel(
            config,
            spec,
            padded_vocab_size,
            parts or parts_of(device),
            chunk=chunk,
            value_head=value_head,
            vision=vision,
            banned=banned,
        ).to(device)
        model: torch.nn.Module = policy
        _mark_tensor_parallel(model)
        _mark_experts(model, config)
        if adapters is not None:
            lora.attach(policy, adapters)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        if config.bf16 or config.fp16:
            model = Float16Module(config, model)
            if hasattr(policy, "visual"):
                keep_frequencies(policy.visual)
        # As in Megatron, only the first chunk has buckets: the reductions of others overlap anyway.
        stage.append(DistributedDataParallel(config, options, model, disable_bucketing=bool(stage)))
    lora.start(stage, seed)
    return stage


def _mark_tensor_parallel(model: torch.nn.Module) -> None:
    """Mark weights that are sharded over tensor-parallel ranks; others count once in the gradient norm.

    Megatron 0.16 does this while it initialises weights, which we skip; Transformer Engine always does it.
    """
    dims = {ColumnParallelLinear: 0, VocabParallelEmbedding: 0, RowParallelLinear: 1}
    for module in model.modules():
        if type(module) in dims and module.weight is not None and not _is_marked(module.weight):
            set_tensor_model_parallel_attributes(
                module.weight, is_parallel=True, dim=dims[type(module)], stride=1
            )


def _is_marked(parameter: Any) -> bool:
    return hasattr(parameter, "tensor_model_parallel")


def _mark_experts(model: torch.nn.Module, config: TransformerConfig) -> None:
    """Mark weights of experts whose gradients are not reduced over the ordinary data-parallel group.

    Megatron marks them only if ep > 1. If etp differs from tp, it would then leave out ranks.
    """
    if config.expert_tensor_parallel_size == config.tensor_model_parallel_size:
        return
    for name, parameter in model.named_parameters():
        if ".mlp.experts." in name:
            parameter.allreduce = False  # pyright: ignore[reportAttributeAccessIssue]


def chunks(stage: Stage) -> list[PolicyModel]:
    """The models inside Megatron's wrappers."""
    return [_unwrapped(chunk) for chunk in stage]


def policy_model(stage: Stage) -> PolicyModel:
    """The last model chunk, which has the output layer on the last pipeline stage."""
    return _unwrapped(stage[-1])


def _unwrapped(model: torch.nn.Module) -> PolicyModel:
    inner: Any = model
    while not isinstance(inner, PolicyModel):
        inner = inner.module
    return inner


def named_parameters(stage: Stage) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Parameters of this rank under their names in the whole model, with global layer indices."""
    for chunk in chunks(stage):
        for name, parameter in chunk.named_parameters():
            if name.startswith("decoder.layers."):
                _, _, local, rest = name.split(".", 3)
                name = f"decoder.layers.{chunk.decoder.layers[int(local)].layer_number - 1}.{rest}"
            yield name, parameter


def forward(model: torch.nn.Module, microbatch: Microbatch) -> Tensor:
    """Hidden states: those that predict trained tokens on the last pipeline stage, all on other stages."""
    return model(
        input_ids=microbatch.token_T.unsqueeze(0),
        position_ids=microbatch.packing.position_T.unsqueeze(0),
        attention_mask=None,
        # Megatron sees one long sequence; our attention separates the packed ones.
        packed_seq_params=MegatronPacking(qkv_format="sbhd", **vars(microbatch.packing)),
    )


def parts_of(device: torch.device) -> LayerSpecs:
    """Classes that the layers on a device are built from."""
    if device.type == "cpu":
        return MEGATRONS
    from hybridrl.trainer.megatron.cuda_layers import TRANSFORMER_ENGINES

    return TRANSFORMER_ENGINES
