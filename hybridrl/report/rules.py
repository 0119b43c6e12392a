"""The rules of advice: what a sick run shows, why that happens, and what to change in its config."""

from dataclasses import dataclass
from typing import Literal

from hybridrl.report.evidence import Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of one key of the config. It is not proposed to a run that has it already."""

    key: str
    to: str | float | None = None
    """The new value; None: `times` the present one."""

    times: float = 1.0
    only: Literal["raise", "lower"] | None = None
    """Propose the value only to a run whose present number is lower, or higher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    name: str
    conditions: tuple[Condition, ...]
    """All of them must hold."""

    cause: str
    changes: tuple[Change, ...]
    """Alternatives, the first one first."""

    source: str
    is_speed: bool = False
    """Whether it costs time alone, and not what the run learns."""


_UNSOLVED = Condition(metric="critic/score/mean", of="share", other="critic/score/max", below=0.9)
"""The run has not solved its task: a policy that has is allowed to be sure of its answers."""

_LOWER_RATE = Change(key="actor.optimizer.lr", times=0.3)

RULES: tuple[Rule, ...] = (
    Rule(
        name="nothing is rewarded",
        conditions=(
            Condition(metric="critic/score/max", below=1e-9),
            Condition(metric="critic/score/mean", of="change", below=1e-9),
        ),
        cause="no answer earns a reward, so no group has a gradient: the format that the reward wants and "
        "the prompt may disagree, or the model is too weak for the task",
        changes=(
            Change(key="data.system_prompt", to="'say in which form to answer'"),
            Change(key="rollout.max_response_tokens", times=2),
        ),
        source="Trinity-RFT PR 566, EasyR1 issue 382; samples.txt and the rollouts show the answers",
    ),
    Rule(
        name="format reward is never met",
        conditions=(Condition(metric="reward/*format*/mean", below=0.02),),
        cause="hardly any answer has the form that a part of the reward wants, so that part teaches nothing",
        changes=(Change(key="data.system_prompt", to="'say in which form to answer'"),),
        source="Trinity-RFT PR 566; fine-tuning on a few examples of the form first also helps: hybridrl sft",
    ),
    Rule(
        name="entropy collapse",
        conditions=(
            Condition(metric="actor/entropy", of="ratio", below=0.5),
            Condition(metric="rollout/zero_std", above=0.5),
            Condition(metric="rollout/zero_std_none", above=0.15),
        ),
        cause="the policy became sure of its answers before it found right ones, and groups whose answers "
        "are all wrong in the same way have no gradient",
        changes=(
            Change(key="algorithm.loss.clip_high", to=0.28, only="raise"),
            Change(key="algorithm.entropy_coefficient", to=0.01, only="raise"),
            _LOWER_RATE,
        ),
        source="DAPO, arXiv:2503.14476, section 3.1",
    ),
    Rule(
        name="entropy explosion",
        conditions=(
            Condition(metric="actor/entropy", of="ratio", above=1.5),
            Condition(metric="critic/score/mean", of="change", below=0.02),
        ),
        cause="the policy becomes more random and the reward does not follow: the entropy bonus outweighs "
        "the reward, or updates are too large",
        changes=(Change(key="algorithm.entropy_coefficient", to=0.0, only="lower"), _LOWER_RATE),
        source="Skywork-OR1, arXiv:2505.22312, on entropy and its coefficient",
    ),
    Rule(
        name="flat groups",
        conditions=(
            Condition(metric="rollout/zero_std", above=0.5),
            Condition(metric="rollout/zero_std_none", above=0.3),
        ),
        cause="in most groups no answer is right, so their rewards are equal and they have no gradient: the"
        " prompts are too hard for this model",
        changes=(
            Change(key="algorithm.dynamic_sampling", to="{}"),
            Change(key="algorithm.samples_per_prompt", times=2),
        ),
        source="DAPO, arXiv:2503.14476, section 3.2",
    ),
    Rule(
        name="all solved",
        conditions=(Condition(metric="rollout/zero_std_all", above=0.5),),
        cause="in most groups all answers are right, so their rewards are equal and they have no gradient: "
        "the prompts are too easy by now, and further steps teach little",
        changes=(Change(key="algorithm.dynamic_sampling", to="{}"),),
        source="DAPO, arXiv:2503.14476, section 3.2; harder data, or fewer steps",
    ),
    Rule(
        name="length creep",
        conditions=(
            Condition(metric="response_length/mean", of="ratio", above=1.5),
            Condition(metric="critic/score/mean", of="change", below=0.02),
        ),
        cause="answers grow and the reward does not: a loss that divides by the length of an answer "
        "punishes long wrong answers less than short ones",
        changes=(
            Change(key="algorithm.preset", to="dr_grpo"),
            Change(key="algorithm.shaping", to="[kimi_length]"),
        ),
        source="Dr. GRPO, arXiv:2503.20783, on the bias of dividing by the length",
    ),
    Rule(
        name="truncation",
        conditions=(Condition(metric="response_length/clip_ratio", above=0.25), _UNSOLVED),
        cause="many answers are cut at the limit, and a cut answer rarely has its reward",
        changes=(
            Change(key="rollout.max_response_tokens", times=2),
            Change(key="algorithm.drop_truncated", to="true"),
        ),
        source="DAPO, arXiv:2503.14476, section 3.4; the limit of 25 % is miles' advisory",
    ),
    Rule(
        name="reward follows length",
        conditions=(
            Condition(metric="critic/score/mean", of="correlation", other="response_length/mean", above=0.8),
            Condition(metric="response_length/mean", of="ratio", above=1.5),
        ),
        cause="reward and length rise together: read a few rollouts and see whether the reward pays for "
        "length",
        changes=(Change(key="algorithm.shaping", to="[kimi_length]"),),
        source="Singhal et al. 2023, arXiv:2310.03716",
    ),
    Rule(
        name="KL runaway",
        conditions=(
            Condition(metric="actor/kl_loss", above=0.3),
            Condition(metric="actor/kl_loss", of="ratio", above=3.0),
        ),
        cause="the policy moves away from the reference faster than the KL term holds it",
        changes=(Change(key="algorithm.kl.coefficient", times=3), _LOWER_RATE),
        source="Ziegler et al. 2019, arXiv:1909.08593: an adaptive coefficient, algorithm.kl.target",
    ),
    Rule(
        name="clip fraction",
        conditions=(Condition(metric="actor/pg_clipfrac", above=0.2),),
        cause="one token in five or more has left the trust region, so its gradient is 0: the policy moves "
        "too far in one step",
        changes=(_LOWER_RATE, Change(key="batch.epochs", to=1, only="lower")),
        source="verl's documentation: 0.1 to 20 % of tokens are clipped in a run that learns",
    ),
    Rule(
        name="trainer and engine disagree more and more",
        conditions=(
            Condition(metric="training/rollout_probs_diff_mean", above=0.005),
            Condition(metric="training/rollout_probs_diff_mean", of="ratio", above=1.5),
        ),
        cause="the engine samples from another policy than the trainer updates, and the gap grows",
        changes=(
            Change(key="algorithm.correction", to="[token_is]"),
            Change(key="actor.moe.router_replay", to="rollout"),
        ),
        source="verl's FAQ: a problem above 0.01; Yao et al. 2025, truncated importance sampling",
    ),
    Rule(
        name="stale answers",
        conditions=(Condition(metric="rollout/lag/mean", above=3.0),),
        cause="the answers that are trained on are many updates old",
        changes=(
            Change(key="batch.max_lag", to=2, only="lower"),
            Change(key="algorithm.correction", to="[token_is]"),
        ),
        source="AReaL, arXiv:2505.24298: results fall off with the lag unless the loss corrects for it",
    ),
    Rule(
        name="stale answers are thrown away",
        conditions=(Condition(metric="goodput/stale", above=0.1),),
        cause="engines sample answers that are too old when their turn comes",
        changes=(Change(key="batch.max_lag", times=2), Change(key="batch.oversample", to="null")),
        source="docs/asynchronous.md, goodput",
        is_speed=True,
    ),
    Rule(
        name="idle engines",
        conditions=(Condition(metric="goodput/idle", above=0.3),),
        cause="engines wait while the trainer works",
        changes=(Change(key="batch.max_lag", to=1, only="raise"),),
        source="docs/asynchronous.md: rollout and training overlap from a lag of 1 on",
        is_speed=True,
    ),
    Rule(
        name="idle ranks",
        conditions=(Condition(metric="perf/dp_idle_share", above=0.1),),
        cause="data-parallel ranks wait for the one with the longest answers",
        changes=(
            Change(key="actor.microbatch_tokens", times=0.5),
            Change(key="batch.minibatch_prompts", times=2),
        ),
        source="docs/tuning.md: with enough microbatches ranks idle at most 1 % of the time",
        is_speed=True,
    ),
    Rule(
        name="critic explains nothing",
        conditions=(Condition(metric="critic/vf_explained_var", below=0.05),),
        cause="the critic is no better than a constant, so advantages are as noisy as the rewards",
        changes=(
            Change(key="critic.optimizer.lr", times=3),
            Change(key="critic.pretrain_steps", to=10, only="raise"),
        ),
        source="VC-PPO, arXiv:2503.01491: a critic that is trained first",
    ),
)
