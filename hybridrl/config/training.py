"""Keys about what is trained: its parallel layout, its optimizer, its memory."""

from typing import Any, Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from hybridrl import registry
from hybridrl.config.images import VisionConfig
from hybridrl.config.section import PluginConfig, Section
from hybridrl.errors import HybridRLError


class OptimizerConfig(Section):
    """AdamW."""

    lr: PositiveFloat = 1.0e-6
    """Peak learning rate."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up, over the optimizer steps of the run."""

    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end of a linear or cosine schedule."""

    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up from 0."""

    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of gradient and squared gradient."""

    eps: PositiveFloat = 1.0e-8
    """Added to the denominator of the step."""

    weight_decay: NonNegativeFloat = 0.0
    """Decoupled; not applied to norms and biases."""

    clip_grad_norm: NonNegativeFloat = 1.0
    """Global L2 norm that gradients are clipped to; 0: never."""


class ProcessModelConfig(Section):
    """The process reward model of estimator prime: a copy of the initial policy, trained on outcomes."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """One optimizer step a policy update; the learning rate stays constant after its warm-up."""

    solved_above: float = 0.0
    """An answer is solved if its reward is above this."""


class TrainParallel(Section):
    """The parallel layout of a model in training: over how many ranks, and along which axes."""

    tp: PositiveInt = 1
    """Tensor parallel size."""

    pp: PositiveInt = 1
    """Pipeline parallel size."""

    dp: PositiveInt | None = None
    """Data parallel size. None: the devices that tp, cp and pp leave over; 1 on a machine without GPUs."""

    cp: PositiveInt = 1
    """Context parallel size: ranks that share the tokens of every sequence."""

    ep: PositiveInt = 1
    """Expert parallel size: ranks that the experts of a layer are partitioned over; divides tp x cp x dp."""

    etp: PositiveInt = 1
    """Tensor parallel size inside an expert."""

    vpp: PositiveInt = 1
    """Virtual pipeline size: chunks of layers in each pipeline stage (interleaved schedule)."""

    sp: bool | None = None
    """Sequence parallel: norms and dropout split the tokens over the tp ranks. None: on if tp is above 1 and
    there are GPUs or experts."""

    stage_layers: tuple[PositiveInt, ...] = ()
    """Layers of each of the pp x vpp chunks, in model order; []: equal parts."""

    shard: PositiveInt | None = None
    """For actor.backend fsdp: ranks that share one copy of the weights; divides cp x dp, and more groups of
    as many ranks have further copies (HSDP). None: all cp x dp ranks share one copy."""

    cp_exchange: Literal["heads", "keys"] | None = None
    """For actor.backend fsdp: what context-parallel ranks exchange. heads: each attends over whole sequences
    with a part of the heads (Ulysses); keys: each gathers all keys and values. None: heads where tp x cp
    divides the key-value heads and that sends less, else keys."""

    @property
    def model_ranks(self) -> int:
        """Ranks that hold one copy of the model, its experts aside."""
        return self.tp * self.cp * self.pp

    @property
    def num_ranks(self) -> int:
        return self.model_ranks * (self.dp or 1)

    @property
    def sizes(self) -> dict[str, Any]:
        """Arguments of a layout: every size except sp, with dp and shard filled in."""
        sizes = {name: value for name, value in self if name not in ("sp", "cp_exchange")}
        return sizes | {"dp": self.dp or 1, "shard": self.shard or 0}


class MoEConfig(Section):
    """Keys for an actor with experts."""

    aux_loss: NonNegativeFloat = 0.0
    """Weight of a loss that balances the experts, summed over layers. It is computed as in DeepSeek-V3
    (arXiv:2412.19437, 2.1.2) for each trajectory with its prompt, and averaged over the trajectories of an
    optimizer step, so it depends on neither microbatches nor ranks."""

    z_loss: NonNegativeFloat = 0.0
    """Weight of the square of log(sum(exp)) of a router's output: averaged over tokens, then as aux_loss."""

    router_replay: Literal["none", "old_logp", "rollout"] = "none"
    """Which experts a token uses in the optimizer steps of a batch. none: those the router chooses at that
    step; old_logp: those it chose when old_logp was computed, before the first step; rollout: those the
    engine chose, for old_logp too (arXiv:2510.11370), so that trainer and engine compute the same
    function."""


class LoraConfig(Section):
    """Low-rank adapters, arXiv:2106.09685: a weight is W + alpha / rank * B A, where A and B are trained."""

    rank: PositiveInt = 16
    """Number of columns of B and of rows of A."""

    alpha: PositiveFloat = 32.0
    """Scale of the adapter: B A is multiplied by alpha / rank."""

    targets: tuple[Literal["qkv", "proj", "fc1", "fc2"], ...] = ("qkv", "proj", "fc1", "fc2")
    """Linear layers that get an adapter. qkv: one for q, k and v together; proj: output of the attention;
    fc1: one for gate and up together; fc2: down. Experts get none."""


class ActorConfig(Section):
    """The policy in training: its parallel layout, memory, precision and optimizer."""

    backend: str = "megatron"
    """Library that all models but the engine's run on. megatron: Megatron-core; fsdp: PyTorch FSDP2 over
    transformers' modules; module:Kind: code outside the project."""

    parallel: TrainParallel = TrainParallel()

    microbatch_tokens: PositiveInt = 16384
    """Tokens, prompts included, packed into one forward and backward on one data-parallel rank."""

    share_prompts: bool = False
    """A microbatch computes each prompt once, and its answers attend to it. Groups of answers stay together
    as far as ranks stay balanced. On a CPU, on Megatron-core, for models without pictures."""

    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Precision of parameters and activations; gradients and the optimizer's copy of the parameters are fp32.
    None: bf16 on GPUs,
    fp32 on CPU. fp16 scales the loss, and skips an optimizer step whose gradients overflow."""

    fp8: Literal["none", "tensorwise", "blockwise", "mxfp8"] = "none"
    """Linear layers multiply in FP8, on GPUs. tensorwise: one scale per tensor; blockwise: one per 128
    numbers, or per 128 x 128 of a weight, on Hopper; mxfp8: one per 32 numbers, on Blackwell. Parameters stay
    bf16, and attention, router, embedding and output layer compute in bf16. The key holds for all models but
    the reward model."""

    bf16_layers: NonNegativeInt = 0
    """Number of layers at each end of the model that compute in bf16 while fp8 is on."""

    non_finite: Literal["halt", "skip"] = "halt"
    """What becomes of an optimizer step of the policy whose loss or gradient norm is inf or NaN; no weight
    changes. halt: the run ends. skip: no rank takes the step, and the metric actor/skipped counts it; after 5
    in a row the run ends."""

    overlap: bool = False
    """Sum gradients over ranks while the backward pass still runs."""

    recompute: Literal["none", "selective", "full"] = "none"
    """What is computed again in the backward pass, to save memory. selective: attention; full: each layer."""

    gather: Literal["each_pass", "once"] = "each_pass"
    """When ranks that share the weights of FSDP gather them. each_pass: a layer at a time, in every forward
    and backward pass; once: for all microbatches of an optimizer step, or of an evaluation, which moves less
    and takes the memory of a whole model in the precision that it computes in."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What is moved to host memory while engines generate. optimizer: the optimizer state; all: gradients
    too, and every weight but the policy's. The key holds for critic, reference and reward model on any
    ranks."""

    keep_on_host: Literal["none", "optimizer", "all"] = "none"
    """What FSDP keeps in host memory while it trains too. optimizer: the moments, and the optimizer's step is
    computed on the CPU; all: the shards of weights and gradients of every model as well, so that a GPU has
    only the layers that it computes with. Each is slower than the one before."""

    moe: MoEConfig = MoEConfig()

    vision: VisionConfig = VisionConfig()

    lora: LoraConfig | None = None
    """Train low-rank adapters and freeze all else. None: train all weights."""

    optimizer: OptimizerConfig = OptimizerConfig()

    @field_validator("backend")
    @classmethod
    def _known(cls, name: str) -> str:
        known = registry.folders("hybridrl.trainer", "backend")
        if ":" not in name and name not in known:
            raise ValueError(
                f"there is no trainer backend {name!r}, use one of {', '.join(known)}, or module:Kind"
            )
        try:
            if ":" in name:
                registry.find("hybridrl.trainer", name, key="backend")
        except HybridRLError as error:
            raise ValueError(f"{error.what}; {error.fix}") from error
        return name


class CriticConfig(Section):
    """The value function of estimator gae: the policy's model with one number in place of the vocabulary."""

    parallel: TrainParallel | None = None
    """Parallel layout on dedicated ranks. None: the actor's ranks, with the actor's parallel layout."""

    microbatch_tokens: PositiveInt | None = None
    """Tokens of a microbatch on dedicated ranks, like actor.microbatch_tokens. None: the actor's number."""

    loss: PluginConfig = PluginConfig(name="clipped")
    """File name in hybridrl.algorithms.value_losses."""

    optimizer: OptimizerConfig = OptimizerConfig(lr=1.0e-5)

    pretrain_steps: NonNegativeInt = 0
    """Policy updates at the beginning in which only the critic is trained."""


class ReferenceConfig(Section):
    """The policies that are never trained: the reference of the KL term, and the teacher."""

    parallel: TrainParallel | None = None
    """Parallel layout on dedicated ranks. None: the actor's ranks, with the actor's parallel layout."""

    microbatch_tokens: PositiveInt | None = None
    """Tokens of a microbatch on dedicated ranks, like actor.microbatch_tokens. None: the actor's number."""
