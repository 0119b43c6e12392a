"""verl's keys as tables: those that one of our keys replaces, and those without a counterpart.

Names and defaults are those of verl in late 2026, from ppo_trainer.yaml and ppo_megatron_trainer.yaml; older
spellings are included.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

A = "actor_rollout_ref.actor"
R = "actor_rollout_ref.rollout"
M = "actor_rollout_ref.model"


@dataclass(frozen=True, slots=True)
class To:
    key: str
    """Our key."""

    default: Any = None
    """verl's default, for a script that does not set the key. None: without a value nothing is translated."""

    convert: Callable[[Any], Any] = lambda value: value
    note: str = ""


def _every(value: int) -> int:
    return max(0, int(value))  # -1: never


def _real(value: Any) -> float:
    return float(value)


DIRECT: Mapping[str, To] = {
    f"{M}.path": To("model"),
    "data.prompt_key": To("data.prompt_field", "prompt"),
    "data.shuffle": To("data.shuffle", True),
    f"{R}.n": To("algorithm.samples_per_prompt", 1),
    f"{A}.entropy_coeff": To("algorithm.entropy_coefficient", 0.0, _real),
    f"{A}.ppo_mini_batch_size": To(
        "batch.minibatch_prompts", 256, note="prompts: verl multiplies it by rollout.n itself"
    ),
    f"{A}.ppo_epochs": To("batch.epochs", 1),
    f"{A}.optim.lr": To("actor.optimizer.lr", 1e-6, _real),
    f"{A}.optim.weight_decay": To("actor.optimizer.weight_decay", 0.01, _real),
    f"{A}.optim.betas": To("actor.optimizer.betas", [0.9, 0.999]),
    f"{R}.tensor_model_parallel_size": To("rollout.parallel.tp", 2),
    "data.max_prompt_length": To("rollout.max_prompt_tokens", 512),
    "data.max_response_length": To("rollout.max_response_tokens", 512),
    f"{R}.temperature": To("rollout.temperature", 1.0, _real),
    f"{R}.gpu_memory_utilization": To("rollout.memory_fraction", 0.5, _real),
    f"{R}.max_num_seqs": To("rollout.max_running_requests", 1024),
    f"{R}.val_kwargs.n": To("evaluate.samples_per_prompt", 1),
    "trainer.nnodes": To("cluster.nodes", 1),
    "trainer.n_gpus_per_node": To("cluster.gpus_per_node", 8),
    "trainer.experiment_name": To("run.name", "gsm8k", str),
    "data.seed": To("run.seed"),
    "trainer.save_freq": To("run.save_every", -1, _every, "the last step is saved in any case"),
    "trainer.test_freq": To("run.evaluate_every", -1, _every, "before and after the run in any case"),
    "trainer.max_actor_ckpt_to_keep": To("run.keep_checkpoints"),
}
"""verl's key -> our key of the same meaning."""

FULLY_ASYNC: Mapping[str, Any] = {
    "algorithm.rollout_correction.bypass_mode": True,
    "async_training.partial_rollout": True,
    "async_training.staleness_threshold": 0.1,
}
"""Defaults of fully asynchronous training that differ from those of ppo_trainer.yaml, from
fully_async_ppo_trainer.yaml."""

CRITIC: Mapping[str, To] = {
    "critic.optim.lr": To("critic.optimizer.lr", 1e-5, _real),
    "critic.optim.weight_decay": To("critic.optimizer.weight_decay", 0.01, _real),
    "critic.optim.betas": To("critic.optimizer.betas", [0.9, 0.999]),
    "critic.cliprange_value": To("critic.loss.clip", 0.5, _real),
    "trainer.critic_warmup": To("critic.pretrain_steps", 0),
}
"""The same for a run with a critic, that is with estimator gae."""

PRESETS: Mapping[str, str] = {
    "grpo": "verl/grpo",
    "grpo_vectorized": "verl/grpo",
    "rloo": "verl/rloo",
    "reinforce_plus_plus": "verl/reinforce_plus_plus",
    "reinforce_plus_plus_baseline": "verl/reinforce_plus_plus_baseline",
    "gdpo": "verl/gdpo",
    "remax": "verl/remax",
    "opo": "verl/opo",
    "gpg": "verl/gpg",
    "grpo_passk": "verl/grpo_passk",
    "optimal_token_baseline": "verl/optimal_token_baseline",
    "tir_optimal_token_baseline": "verl/optimal_token_baseline",
    "flash_reinforce": "verl/flash_reinforce",
}
"""algorithm.adv_estimator -> the preset that computes the same."""

ESTIMATORS: Mapping[str, str] = {
    "gae": "gae",
    "rloo_vectorized": "rloo",
}
"""algorithm.adv_estimator -> estimator, for those that no preset with verl's numerics covers."""

DISCOUNTS: Mapping[str, Mapping[str, str]] = {
    "gae": {"algorithm.gamma": "discount", "algorithm.lam": "policy_lambda"},
    "reinforce_plus_plus": {"algorithm.gamma": "discount"},
}
"""Estimator -> verl's key -> its option; the default of both is 1."""


@dataclass(frozen=True, slots=True)
class Loss:
    name: str
    options: Mapping[str, tuple[str, float | None]]
    """verl's key -> option and verl's default; None: verl refuses the loss without the key."""

    aggregate: str | None = None
    """The only aggregation that verl computes with this loss, whatever loss_agg_mode says."""

    always: Mapping[str, str] = field(default_factory=dict)
    """Options that give verl's form of the loss, which has no key for them."""


_CLIPS = {f"{A}.clip_ratio_low": ("clip_low", 0.2), f"{A}.clip_ratio_high": ("clip_high", 0.2)}
_DELTAS = {
    f"{A}.clip_ratio_low": ("delta_low", 0.2),
    f"{A}.clip_ratio_high": ("delta_high", 0.2),
    f"{A}.clip_ratio_c": ("max_ratio", 3.0),
}
_COV = f"{A}.policy_loss"

LOSSES: Mapping[str, Loss] = {
    "vanilla": Loss("ppo_clip", _CLIPS | {f"{A}.clip_ratio_c": ("dual_clip", 3.0)}),
    "gspo": Loss("gspo", _CLIPS, "seq_mean_token_mean"),
    "sapo": Loss(
        "sapo",
        {f"{A}.tau_pos": ("tau_positive", 1.0), f"{A}.tau_neg": ("tau_negative", 1.05)},
        "seq_mean_token_mean",
    ),
    "geo_mean": Loss("gmpo", _CLIPS, "seq_mean_token_mean"),
    "cispo": Loss("cispo", _CLIPS),
    "gpg": Loss("reinforce", {}),
    "dppo_tv": Loss("dppo_tv", _DELTAS),
    "dppo_kl": Loss("dppo_kl", _DELTAS),
    "dro": Loss("dro", {f"{A}.policy_loss.dro_beta": ("beta", None)}, always={"over": "token"}),
    "flash_reinforce": Loss(
        "flash_reinforce",
        {f"{A}.policy_loss.flash_reinforce_kl_threshold": ("delta", 1e-3)},
        "seq_mean_token_mean",
    ),
    "clip_cov": Loss(
        "clip_cov",
        _CLIPS
        | {
            f"{_COV}.clip_cov_ratio": ("share", 2e-4),
            f"{_COV}.clip_cov_lb": ("lowest", 1.0),
            f"{_COV}.clip_cov_ub": ("highest", 5.0),
        },
    ),
    "kl_cov": Loss(
        "kl_cov",
        {f"{_COV}.kl_cov_ratio": ("share", 2e-4), f"{_COV}.ppo_kl_coef": ("coefficient", 0.1)},
    ),
}
"""policy_loss.loss_mode -> loss."""

KL: Mapping[str, str] = {
    "kl": "k1",
    "k1": "k1",
    "kl+": "k1_plus",
    "k1+": "k1_plus",
    "abs": "abs",
    "abs+": "abs_plus",
    "mse": "k2",
    "k2": "k2",
    "low_var_kl": "k3_clamped",
    "k3": "k3_clamped",
    "low_var_kl+": "k3_plus",
    "k3+": "k3_plus",
}
"""kl_loss_type and kl_penalty -> estimator."""

NO_COUNTERPART: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    (f"{R}.top_p", (1,), "sampling is from the whole distribution: else trainer and engine disagree on it"),
    (
        f"{R}.top_k",
        (-1, 0),
        "sampling is from the whole distribution: else trainer and engine disagree on it",
    ),
    (f"{R}.do_sample", (True,), "training has to sample; greedy answers carry no signal"),
    (f"{R}.multi_turn.enable", (False,), "write a section environment, with tools: docs/agents.md"),
    (f"{R}.data_parallel_size", (1,), "engines in data parallel are rollout.num_engines"),
    (f"{R}.*_parallel_size", (1,), "engines are tensor and expert parallel"),
    (f"{R}.prompt_length", (), "it is rollout.max_prompt_tokens, which data.max_prompt_length sets"),
    (f"{R}.response_length", (), "it is rollout.max_response_tokens, which data.max_response_length sets"),
    (f"{R}.quantization", (None,), "engines in block FP8 are rollout.precision: fp8"),
    (f"{M}.external_lib", (None,), "a model is a table in hybridrl/models"),
    (
        f"{M}.custom_chat_template",
        (None,),
        "put it into the tokenizer's folder: data.chat_template is the model's",
    ),
    (f"{A}.shuffle", (False,), "minibatches keep the order of the prompts"),
    (
        f"{A}.clip_ratio",
        (),
        "verl's clip_ratio_low and clip_ratio_high, 0.2 by default, take precedence",
    ),
    (f"{A}.loss_scale_factor", (None,), "seq_mean_token_sum_norm divides by rollout.max_response_tokens"),
    (f"{A}.router_replay.mode", ("disabled", "R2", "R3"), "actor.moe.router_replay knows none, R2 and R3"),
    (
        f"{A}.policy_loss.flash_reinforce_neg_topq",
        (1, 1.0, None),
        "every token of a failed answer counts here",
    ),
    ("data.gen_batch_size", (), "algorithm.dynamic_sampling replaces each flat group at once"),
    (
        "data.truncation",
        ("error",),
        "a prompt over rollout.max_prompt_tokens is refused: shorten it in the file",
    ),
    (
        "data.filter_overlong_prompts",
        (False,),
        "a prompt over rollout.max_prompt_tokens is refused: take it out of the file",
    ),
    ("data.train_max_samples", (-1,), "shorten the file"),
    ("data.val_max_samples", (-1,), "shorten the file"),
    ("data.custom_cls.*", (None,), "rows that no file holds come from data.train.task: module:function"),
    ("data.sampler.*", (None,), "prompts come in a new order at each epoch"),
    ("algorithm.use_pf_ppo", (False,), "the loss pf_ppo does it: algorithm.loss: pf_ppo"),
    (
        "algorithm.rollout_correction.rollout_rs*",
        (None,),
        "choose algorithm.correction: [{name: reject, ...}]; it is not one of verl's token_k1 to seq_max_k3",
    ),
    (
        "reward_model.enable",
        (False,),
        "name the model in reward_model.path; with reward: none it judges alone",
    ),
    (
        "reward.reward_model.enable",
        (False,),
        "name the model in reward_model.path; with reward: none it judges alone",
    ),
    (
        "*reward_manager*",
        ("naive", "dapo", "prime", "batch", "register", None),
        "write a reward: module:function",
    ),
    ("*sandbox_fusion.url", (None,), "write a reward: module:function"),
    ("async_training.*", (), "batch.max_lag says how many updates a trajectory may be old"),
    ("critic.model.path", (), "the critic starts from the policy's weights"),
    (
        "critic.ppo_mini_batch_size",
        (),
        "the critic has the minibatches of the actor: batch.minibatch_prompts",
    ),
    ("critic.ppo_epochs", (), "the critic has the epochs of the actor: batch.epochs"),
    ("trainer.val_only", (False,), "hybridrl launch trains"),
)
"""Pattern of keys, the values that change nothing (none: every value matters), and what to do about
others."""

CRITIC_REST = "no key of the critic does it: hybridrl config explain critic"
"""About a key of the critic, in a run that has one, that nothing above covers."""

_ENGINE = (
    "enforce_eager free_cache_engine enable_chunked_prefill enable_prefix_caching max_num_batched_tokens"
)

IGNORED: tuple[tuple[str, str], ...] = (
    ("*offload*", "where weights are kept between phases"),
    (f"{A}.ppo_micro_batch_size*", "microbatches are packed by tokens: ppo_max_token_len_per_gpu was taken"),
    (f"{A}.ppo_max_token_len_per_gpu", "microbatches were sized by ppo_micro_batch_size_per_gpu"),
    ("*.recompute_*", "which activations are computed again"),
    ("*overlong_buffer*", "the penalty is off"),
    ("algorithm.rollout_correction.*", "no correction is on"),
    ("*.log_prob_*", "passes without gradients are packed like training: actor.microbatch_tokens"),
    ("*.forward_m*", "passes without gradients are packed like training: actor.microbatch_tokens"),
    ("*.use_dynamic_bsz", "microbatches are always packed by tokens: actor.microbatch_tokens"),
    ("critic.ppo_micro_batch*", "the critic shares actor.microbatch_tokens"),
    ("critic.ppo_max_token*", "the critic shares actor.microbatch_tokens"),
    ("*.use_remove_padding", "sequences are always packed"),
    ("*.use_torch_compile", "speed"),
    ("*fused_kernel*", "speed"),
    ("*.use_liger", "speed"),
    ("*.entropy_*", "memory of the entropy"),
    ("*.calculate_*", "entropy and the engine's log-probabilities are always measured"),
    *((f"{R}.{name}", "speed of the engine") for name in _ENGINE.split()),
    (f"{R}.mode", "the engine is always asynchronous"),
    (f"{R}.load_format", "the first weights come from the trainer"),
    (f"{R}.max_model_len", "it follows from the longest prompt and answer"),
    (f"{R}.checkpoint_engine.*", "weights go straight into the engine's parameters"),
    (f"{R}.layered_summon", "weights go straight into the engine's parameters"),
    (f"{R}.engine_kwargs.*", "options of another engine, or speed"),
    (f"{R}.disable_log_stats", "logging"),
    (f"{R}.dtype", "the engine has the precision of the trainer"),
    (f"{R}.agent.*", "several turns are a section environment"),
    (f"{R}.multi_turn.*", "several turns are a section environment"),
    ("actor_rollout_ref.ref.*", "the reference policy has the layout of the actor"),
    ("actor_rollout_ref.hybrid_engine", "trainer and engines share the devices"),
    ("*.nccl_timeout", "cluster.step_timeout_s bounds every phase"),
    ("*.fsdp_config.model_dtype", "weights that are trained are always fp32"),
    ("*.fsdp_config.*", "how weights are sharded, or speed"),
    ("*.strategy", "all roles have the backend of the actor"),
    ("*.ulysses_*", "all roles split sequences like the actor"),
    ("*.sequence_parallel", "how activations are split"),
    ("*mbridge", "model.path is read directly"),
    ("*dist_checkpointing*", "model.path is read directly"),
    ("*.use_distributed_optimizer", "how the optimizer is sharded"),
    ("*.trust_remote_code", "code in a model's folder is never run"),
    ("*.use_shm", "how files are read"),
    ("*.checkpoint.*", "a checkpoint always holds all that a resume needs"),
    ("*profiler*", "profiling"),
    ("model_engine", "actor.backend says which library trains"),
    ("trainer.critic_warmup", "estimators other than gae have no critic"),
    ("data.return_*", "rows are read whole"),
    ("data.reward_fn_key", "the reward is named in the config"),
    ("data.image_key", "text only"),
    ("data.video_key", "text only"),
    ("data.val_batch_size", "evaluation is one batch"),
    ("data.*num_workers", "speed"),
    ("data.*_workers", "speed"),
    ("data.validation_shuffle", "the order of an evaluation"),
    ("reward_model.launch_reward_fn_async", "rewards are computed in separate processes"),
    ("*reward_kwargs*.log", "metrics of the reward"),
    ("reward*.max_resp_len", "it is rollout.max_response_tokens"),
    ("algorithm.filter_groups.metric", "groups are judged by their rewards"),
    ("algorithm.kl_ctrl.*", "without a KL term nothing reads it"),
    ("algorithm.kl_penalty", "without a KL term in the reward nothing reads it"),
    ("algorithm.norm_adv_by_std_in_grpo", "only grpo, grpo_passk and gdpo read it"),
    ("algorithm.gdpo_*", "only gdpo reads it"),
    ("algorithm.gamma", "with outcome rewards and no discount nothing reads it"),
    ("algorithm.lam", "only gae reads it"),
    (f"{A}.kl_loss_*", "without a KL loss nothing reads it"),
    (f"{A}.clip_ratio_*", "this loss does not read it"),
    (f"{A}.grad_clip", "actor.optimizer.clip_grad_norm is set"),
    (f"{A}.data_loader_seed", "run.seed"),
    ("*.megatron.seed", "run.seed"),
    ("trainer.logger", "metrics go to the run folder and to what observe.sinks names"),
    ("trainer.project_name", "a name in a tracker"),
    ("trainer.balance_batch", "microbatches are always balanced by tokens"),
    ("trainer.resume_*", "hybridrl launch --resume"),
    ("trainer.val_before_train", "the policy is always evaluated before the run"),
    ("trainer.default_*_dir", "the run is in run.folder / run.name"),
    ("trainer.*_data_dir", "samples.txt of the run folder"),
    ("trainer.log_val_generations", "samples.txt of the run folder"),
    ("trainer.max_critic_ckpt_to_keep", "run.keep_checkpoints"),
    ("trainer.total_epochs", "run.steps is set"),
    ("trainer.device", "devices are found"),
    ("trainer.use_*", "which of verl's trainers runs"),
    ("trainer.v1.*", "which of verl's trainers runs"),
    ("trainer.ray_*", "cluster.start_timeout_s"),
    ("ray_*", "Ray is started by hybridrl"),
)
"""Pattern of keys, and why the result is the same."""
