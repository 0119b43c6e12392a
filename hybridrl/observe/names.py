"""Every metric by name: unit, meaning, and how the optimizer steps of a policy update combine into one value.

Names are verl's. They use letters, digits and "_-./ " only, since MLflow refuses others: mean@4 is mean_at_4.
"""

import re
from dataclasses import dataclass
from itertools import product
from typing import Literal

Over = Literal["mean", "max", "min", "last"]

FIRST_RATIO_ERROR = "training/first_ratio_max_abs_err"
LOGP_GAP = "training/rollout_logp_diff_max"


@dataclass(frozen=True, slots=True)
class Metric:
    unit: str
    meaning: str
    over: Over = "mean"
    """How the values of the optimizer steps of a policy update are combined."""


def _each(names: str) -> list[str]:
    """Names that a pattern stands for: "a/{b,c}" stands for a/b and a/c."""
    parts = [p.split(",") if i % 2 else [p] for i, p in enumerate(re.split(r"[{}]", names))]
    return ["".join(choice) for choice in product(*parts)]


_PER_TRAJECTORY = "{mean,max,min}"
_ROWS: list[tuple[str, Metric]] = [
    ("training/global_step", Metric("updates", "Policy updates done.")),
    ("training/epoch", Metric("epochs", "Passes over the training prompts.")),
    (LOGP_GAP, Metric("nats", "Largest gap between trainer and engine on a sampled token.")),
    ("training/rollout_probs_diff_{mean,max,std}", Metric("probability", "The same gap, in probability.")),
    ("training/rollout_actor_probs_pearson_corr", Metric("1", "Correlation of the two probabilities.")),
    (
        FIRST_RATIO_ERROR,
        Metric("1", "actor/ratio_max_abs_err of the first optimizer step; 0 if the trainer is right."),
    ),
    (f"critic/score/{_PER_TRAJECTORY}", Metric("reward", "Outcome reward of the trajectories.")),
    (
        f"critic/rewards/{_PER_TRAJECTORY}",
        Metric("reward", "Outcome reward after shaping: what the estimator sees."),
    ),
    (f"critic/advantages/{_PER_TRAJECTORY}", Metric("advantage", "Advantages, over trained tokens.")),
    (
        f"critic/returns/{_PER_TRAJECTORY}",
        Metric("reward", "Target of the value function, over trained tokens."),
    ),
    ("critic/values/mean", Metric("reward", "Values that the critic predicts, over trained tokens.")),
    ("critic/vf_loss", Metric("reward^2", "Loss of the critic.")),
    ("critic/vf_clipfrac", Metric("share", "Trained tokens whose value was clipped.")),
    ("critic/vf_explained_var", Metric("share", "Variance of the returns that values explain.")),
    ("critic/grad_norm", Metric("1", "Gradient norm of the critic, before clipping.")),
    ("critic/lr", Metric("1", "Learning rate of the critic's last optimizer step.", "last")),
    (
        f"reward_model/score/{_PER_TRAJECTORY}",
        Metric("score", "Scores of the reward model, before its weight."),
    ),
    ("rollout/zero_std", Metric("share", "Groups whose rewards are all equal: no learning signal.")),
    ("rollout/zero_std_all", Metric("share", "Groups whose answers were all rewarded.")),
    ("rollout/zero_std_none", Metric("share", "Groups of which no answer was rewarded.")),
    ("rollout/prompts_sampled", Metric("prompts", "Groups trained on, and flat ones that were replaced.")),
    ("rollout/kept_share", Metric("share", "Groups of these that carry a signal.")),
    ("rollout/sampled_score", Metric("reward", "Mean outcome reward of these, flat groups included.")),
    ("rollout/dropped_share", Metric("share", "Trajectories that are not trained on.")),
    (
        "training/skipped_share",
        Metric(
            "share",
            "Trajectories of advantage 0 that were not computed, because they change neither loss nor "
            "gradient; `actor/entropy` and other metrics of the policy are means over the other ones.",
        ),
    ),
    ("rollout/lag/{mean,max}", Metric("updates", "Age of the answers, by their oldest token; 0 on-policy.")),
    (
        "rollout/ended_length",
        Metric("tokens", "Mean length of all answers that ended since the last step; see asynchronous.md."),
    ),
    ("num_turns/{mean,max,min}", Metric("turns", "Answers of the policy in an episode.")),
    (
        "episode/ended/{done,max_turns,max_tokens,overflow,deadline,failed}",
        Metric(
            "share",
            "Episodes that ended so: by the environment, at the limit of turns, in an answer or in messages "
            "that filled the context, when the program's time was over, or because the environment failed "
            "three times.",
        ),
    ),
    (
        "episode/retried",
        Metric("attempts", "Attempts at episodes in which the environment failed; it may fail twice."),
    ),
    (
        "rollout/cached_share",
        Metric("share", "Prompt tokens of later turns whose keys and values were in the engine's cache."),
    ),
    ("rollout/groups/open", Metric("groups", "Groups started and not yet trained on, after the choice.")),
    ("rollout/groups/aborted", Metric("groups", "Groups left over by the step, which start again.")),
    ("rollout/groups/dropped", Metric("groups", "Groups too old for the step, with batch.stale: drop.")),
    (
        "rollout/groups/asked_again",
        Metric("groups", "Groups of engines that were lost, asked again with the same seeds."),
    ),
    ("rollout/engines/serving", Metric("engines", "Engines that serve at the end of the step.")),
    ("rollout/engines/replaced", Metric("engines", "Lost engines that serve again since the last step.")),
    ("rollout/tokens/sampled", Metric("tokens", "Tokens that engines sampled since the last step.")),
    ("rollout/tokens/with_gradient", Metric("tokens", "Tokens trained on with an advantage that is not 0.")),
    (
        "rollout/tokens/no_gradient",
        Metric("tokens", "Tokens of the step without one: flat groups, truncated or greedy answers."),
    ),
    ("rollout/tokens/stale", Metric("tokens", "Tokens too old to be trained on, masked or dropped.")),
    ("rollout/tokens/flat", Metric("tokens", "Tokens of flat groups that were replaced.")),
    ("rollout/tokens/aborted", Metric("tokens", "Tokens of groups that start again.")),
    (
        "rollout/tokens/in_flight",
        Metric("tokens", "Tokens sampled in this session that none of these five counts has yet."),
    ),
    (
        "rollout/tokens/recomputed",
        Metric("tokens", "Tokens whose key-value cache was computed again after a swap."),
    ),
    (
        "rollout/kept_cache_error",
        Metric(
            "nats", "Largest error of a token sampled with a cache of older weights; in_flight_keep_cache."
        ),
    ),
    (
        "goodput/{with_gradient,no_gradient,stale,flat,aborted}",
        Metric("share", "Time of engines that sampled such tokens, as rollout/tokens/... of the step says."),
    ),
    ("goodput/in_flight", Metric("share", "Time of engines that sampled, in a step that settled no token.")),
    ("goodput/recomputed", Metric("share", "Time of engines that computed the cache again.")),
    ("goodput/paused", Metric("share", "Time of engines that were paused with open requests.")),
    ("goodput/rewards", Metric("share", "Time of engines without a request, while rewards were awaited.")),
    ("goodput/idle", Metric("share", "Time of engines without a request, for want of prompts.")),
    ("perf/engines_generating", Metric("share", "Time of engines with a running request, not paused.")),
    ("actor/loss", Metric("loss", "The objective that was minimised.")),
    ("actor/pg_loss", Metric("loss", "Policy-gradient part of the objective.")),
    ("actor/kl_loss", Metric("nats", "KL divergence to the reference policy.")),
    (
        "actor/observation_loss",
        Metric("nats", "Mean of -log p of what the environment wrote, with algorithm.observations."),
    ),
    ("actor/kl_coef", Metric("1", "Weight of the KL divergence.", "last")),
    ("actor/reward_kl_penalty", Metric("nats", "KL divergence subtracted from the reward.")),
    ("actor/reward_kl_penalty_coeff", Metric("1", "Weight of that divergence.", "last")),
    ("process/loss", Metric("nats", "Cross entropy of PRIME's process model with the outcomes.")),
    ("process/accuracy", Metric("share", "Trajectories whose outcome the process model predicts.")),
    ("process/grad_norm", Metric("1", "Gradient norm of the process model, before clipping.")),
    ("actor/loss_scale", Metric("1", "Factor of the loss in fp16, so that gradients do not vanish.", "last")),
    (
        "actor/skipped",
        Metric(
            "share", "Optimizer steps skipped for a loss or gradient that is not finite: actor.non_finite."
        ),
    ),
    ("actor/overflow", Metric("share", "Optimizer steps that fp16 skipped: gradients overflowed.")),
    ("actor/entropy_coef", Metric("1", "Weight of the entropy bonus.", "last")),
    ("moe/load_max", Metric("1", "Tokens of the busiest expert over the mean one's, mean over layers.")),
    ("moe/engine_differs", Metric("share", "Tokens whose router would not choose the engine's experts.")),
    ("moe/penalty", Metric("loss", "Balance and z loss of the routers, weighted; not part of actor/loss.")),
    ("actor/entropy", Metric("nats", "Entropy of the policy, mean over trained tokens.")),
    ("actor/pg_clipfrac", Metric("share", "Trained tokens whose ratio was clipped.")),
    ("actor/pg_clipfrac_lower", Metric("share", "Trained tokens at the dual clip.")),
    ("actor/ppo_kl", Metric("nats", "Mean of old_logp - logp: how far the update went.")),
    ("actor/ratio_max_abs_err", Metric("1", "Largest |ratio - 1| of a trained token.", "max")),
    ("actor/cov_clipfrac", Metric("share", "Trained tokens that the loss clip_cov left out.")),
    ("actor/kl_cov_penalty", Metric("loss", "Penalty of the loss kl_cov, mean over trained tokens.")),
    (
        "actor/binary_kl",
        Metric(
            "nats",
            "Divergence from the engine of the sampled tokens against all others, of loss "
            "flash_reinforce, mean over trained tokens.",
        ),
    ),
    (
        "actor/score_centre",
        Metric("1", "Size of the correction of loss score_centering, 0 where engine and trainer agree."),
    ),
    ("actor/engine_head", Metric("share", "Probability of the engine's head in loss score_centering.")),
    (
        "actor/teacher_divergence",
        Metric(
            "nats", "Divergence of policy and teacher in loss teacher_divergence, mean over trained tokens."
        ),
    ),
    ("actor/teacher_head", Metric("share", "Probability of the teacher's head in loss teacher_divergence.")),
    (
        "actor/teacher_gap",
        Metric("nats", "Teacher's log-probability minus the policy's, mean over trained tokens."),
    ),
    ("actor/behaviour_weight", Metric("1", "Weight of the loss decoupled_ppo, mean over trained tokens.")),
    ("actor/m2po_masked", Metric("share", "Trained tokens that the loss m2po left out.")),
    ("actor/opsm_masked", Metric("share", "Trained tokens that the loss opsm left out.")),
    ("actor/nll_loss", Metric("nats", "Imitation term of the loss vapo, mean over trained tokens.")),
    ("actor/grad_norm", Metric("1", "Global L2 norm before clipping.")),
    ("actor/lr", Metric("1", "Learning rate of the last optimizer step.", "last")),
    ("actor/num_updates", Metric("optimizer steps", "Optimizer steps of this policy update.")),
    (
        f"response_length/{_PER_TRAJECTORY}",
        Metric("tokens", "Tokens of answers, of tools and observations too."),
    ),
    ("response_length/clip_ratio", Metric("share", "Answers truncated at max_response_tokens.")),
    (
        f"response_length_non_aborted/{_PER_TRAJECTORY}",
        Metric("tokens", "Answers that the engine did not give up."),
    ),
    ("response/aborted_ratio", Metric("share", "Answers that the engine gave up.")),
    (f"prompt_length/{_PER_TRAJECTORY}", Metric("tokens", "Prompts, once per answer.")),
    ("prompt_length/clip_ratio", Metric("share", "Prompts that fill max_prompt_tokens.")),
    (
        "global_seqlen/{min,max,minmax_diff,mean}",
        Metric("tokens", "Tokens of one data-parallel rank, prompts included."),
    ),
    ("perf/total_num_tokens", Metric("tokens", "Tokens of the step, prompts included.")),
    ("perf/time_per_step", Metric("s", "Wall clock of the step, without evaluation and checkpoint.")),
    (
        "perf/throughput",
        Metric("tokens/s/device", "Tokens of the step over its time and the number of devices."),
    ),
    (
        "perf/overhead_share",
        Metric("share", "Time of the step in neither generation nor trainer; 0 if they overlap."),
    ),
    (
        "perf/dp_idle_share",
        Metric(
            "share", "Time that data-parallel ranks wait for the busiest, computed from sequence lengths."
        ),
    ),
    ("perf/cpu_memory_used_gb", Metric("GiB", "Main memory in use on the driver's machine.")),
    ("perf/driver_memory_gb", Metric("GiB", "Main memory of the driver process.")),
    (
        "perf/max_memory_{allocated,reserved}_gb",
        Metric("GiB", "Largest peak of device memory of a trainer rank."),
    ),
    ("timing_s/step", Metric("s", "Wall clock of the step.")),
    ("timing_s/wait_for_batch", Metric("s", "Time that the trainer waits for scored answers.")),
    (
        "timing_s/wait_for_bound",
        Metric("s", "The part of it in which enough groups have ended, but max_lag needs others."),
    ),
    ("timing_s/gen", Metric("s", "Generation.")),
    ("timing_s/reward", Metric("s", "Scoring.")),
    ("timing_s/adv", Metric("s", "Advantages on the driver.")),
    ("timing_s/old_log_prob", Metric("s", "Loading the batch and computing its logprobs.")),
    ("timing_s/update_actor", Metric("s", "All optimizer steps.")),
    ("timing_s/update_weights", Metric("s", "The weight swap.")),
    ("timing_s/inspect", Metric("s", "Fetching the rollouts of rollouts.jsonl, in steps that write some.")),
    ("timing_s/testing", Metric("s", "Held-out evaluation.")),
    ("timing_s/save_checkpoint", Metric("s", "Checkpoint before this step.")),
    ("timing_per_token_ms/gen", Metric("ms", "Generation, per answer token.")),
    (
        "timing_per_token_ms/{adv,old_log_prob,update_actor}",
        Metric("ms", "Time of the phase per token, prompts included."),
    ),
    ("sync/time_s", Metric("s", "The weight swap.")),
    ("sync/written_bytes", Metric("bytes", "Written into engine parameters, by all ranks.")),
    (
        "sync/sent_bytes",
        Metric("bytes", "Bytes of these that one trainer rank sent to another, on the engine's node."),
    ),
    ("sync/staging_bytes", Metric("bytes", "Largest buffer that a rank held besides the weights.")),
    ("sync/tensors", Metric("tensors", "Engine tensors that were written.")),
    ("sync/checksum_ok", Metric("0 or 1", "Checksums of every tensor are equal on both sides.")),
    (
        "sync/in_place",
        Metric("0 or 1", "0: weights went through the engine's own loader, and nothing was compared."),
    ),
    ("sync/replays", Metric("writes", "Writes repeated after a fault in the swap; 0 if all is well.")),
    (
        "{train,val}/loss",
        Metric("nats", "sft: mean of -log p over trained tokens; rm: of -log sigmoid over pairs."),
    ),
    ("{train,val}/accuracy", Metric("share", "Pairs that a reward model ranks right.")),
    ("{train,val}/reward_gap", Metric("score", "Score of the chosen answer minus that of the rejected one.")),
    ("{train,val}/reward", Metric("score", "Mean score of both answers of a pair.")),
    ("train/grad_norm", Metric("1", "Global L2 norm before clipping.")),
    ("train/lr", Metric("1", "Learning rate of the update.", "last")),
    ("train/learnt_tokens", Metric("tokens", "Tokens of the update that the loss is over.")),
]

METRICS: dict[str, Metric] = {name: metric for names, metric in _ROWS for name in _each(names)}

FAMILIES: dict[str, Metric] = {
    "val-core/": Metric("reward", "<source>/reward/mean_at_<k>, best_at_<k>: held-out reward, over prompts."),
    "val-aux/": Metric("reward", "Further held-out values, as val-core."),
    "reward/timeout/": Metric("reward", "mean: share of answers whose reward did not come in time."),
    "reward/unjudged": Metric(
        "answers",
        "Answers without a reward because a judge failed, which are not trained on; reward/unjudged/<kind>: "
        "by kind of failure.",
    ),
    "reward/": Metric("reward", "<part>/mean: a part of the reward, over trajectories that have it."),
    "judge/": Metric(
        "", "<part>/requests, retries: to a service that judges; <part>/failed: answers that it gave nothing."
    ),
    "tool/": Metric(
        "",
        "<name>/calls since the last step; <name>/errors: share of them that failed, <name>/errors/<kind> by "
        "kind; <name>/time_s: mean seconds of one.",
    ),
    "environment/": Metric(
        "",
        "<name>/reward, <name>/num_turns: what the turns of its episodes earned, and how many they were; "
        "<name>/<metric>: what the environment reports. Means over its episodes.",
    ),
    "timing_s/": Metric("s", "Any other span."),
    "timing_per_token_ms/": Metric("ms", "Any other span, per token, prompts included."),
    "rollout_corr/": Metric("", "Correction of the difference between trainer and engine."),
}
"""Metrics whose names are made at run time, by prefix."""


def describe(name: str) -> Metric | None:
    """Unit and meaning of a metric; None for one that only a plug-in knows."""
    family = next((metric for prefix, metric in FAMILIES.items() if name.startswith(prefix)), None)
    return METRICS.get(name, family)


def over(name: str) -> Over:
    """How the values of optimizer steps combine: as METRICS says; for a plug-in's metric, by the last word of
    its name."""
    if name in METRICS:
        return METRICS[name].over
    last_word = re.split(r"[/_]", name)[-1]
    return last_word if last_word in ("max", "min") else "mean"


def safe(name: str) -> str:
    """The name without characters that MLflow refuses: mean@4 -> mean_at_4, other characters -> "_"."""
    name = re.sub(r"[^A-Za-z0-9_\-./ ]", "_", name.replace("@", "_at_"))
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))[:250]
