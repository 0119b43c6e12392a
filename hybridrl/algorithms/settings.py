"""Parts of an algorithm that are config keys instead of plug-ins: selection of prompts and answers,
coefficients.

They are rows of the catalog and its page; the code is in sampling.py, controllers.py and objective.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row; `key` is how a config sets it."""

    name: str
    title: str
    key: str
    formula: str
    source: str
    use: str


SETTINGS = (
    Setting(
        name="dynamic_sampling",
        title="DAPO's dynamic sampling: groups without a signal are replaced.",
        key="algorithm.dynamic_sampling: {}",
        formula="keep a group iff max s > min s; answer further prompts until prompts_per_step are kept",
        source='Yu et al. 2025, "DAPO", arXiv:2503.14476',
        use="where many prompts are always solved, or never; costs rollout, saves optimizer steps.",
    ),
    Setting(
        name="difficulty_filter",
        title="Groups outside a range of difficulty are replaced.",
        key="algorithm.dynamic_sampling: {lowest: 0.2, highest: 0.8}",
        formula="keep a group iff lowest <= share of answers with s > solved_above <= highest",
        source='Cui et al. 2025, "PRIME", arXiv:2502.01456, online prompt filtering',
        use="with dynamic sampling, to leave out the nearly solved and the nearly hopeless as well.",
    ),
    Setting(
        name="overlong_filter",
        title="DAPO's overlong filtering: answers that were truncated are not trained on.",
        key="algorithm.drop_truncated: true",
        formula="A_i counts in its group's mean; its tokens are in no minibatch and in no denominator",
        source='Yu et al. 2025, "DAPO", arXiv:2503.14476, section 3.4',
        use="where the token limit truncates answers, whose reward then says nothing about them.",
    ),
    Setting(
        name="kl_in_loss",
        title="KL to the reference as a term of the loss.",
        key="algorithm.kl: {coefficient: 0.001, in: loss}",
        formula="loss + coefficient * aggregate(KL_t)",
        source='Shao et al. 2024, "DeepSeekMath", arXiv:2402.03300',
        use="the usual place with group-relative estimators.",
    ),
    Setting(
        name="kl_in_reward",
        title="KL to the reference as a cost of each token.",
        key="algorithm.kl: {coefficient: 0.001, in: reward}",
        formula="s_t - coefficient * KL_t(old policy, reference), s_t = s on the last trained token",
        source="Ziegler et al. 2019, arXiv:1909.08593",
        use="with PPO and REINFORCE++, whose returns are sums over tokens.",
    ),
    Setting(
        name="teacher_term",
        title="On-policy distillation beside any estimator.",
        key="algorithm.teacher_coefficient: 1.0",
        formula="A_t + coefficient (teacher_logp_t - old_logp_t), after the estimator",
        source="slime, --use-opd; Lu et al. 2025, On-Policy Distillation (Thinking Machines)",
        use="a reward and a teacher together; with estimator distillation the teacher alone.",
    ),
    Setting(
        name="self_distillation",
        title="OPSD: the policy is its own teacher, which reads a demonstration before the prompt.",
        key="algorithm.hint: {field: demonstration}",
        formula="teacher_logp_t = log p(y_t | hint, x, y_<t) of the policy before the update, or of "
        "algorithm.teacher",
        source='Shenfeld et al. 2026, "Self-Distillation Enables Continual Learning", arXiv:2601.19897, and '
        'Zhao et al. 2026, "Self-Distilled Reasoner", arXiv:2601.18734; on the sampled tokens with estimator '
        "distillation, on whole distributions with loss teacher_divergence",
        use="with estimator distillation or teacher_coefficient: data with demonstrations or solutions, and "
        "no larger model of the same vocabulary.",
    ),
    Setting(
        name="observation_loss",
        title="ECHO: the policy also learns to predict what the environment writes.",
        key="algorithm.observations: {coefficient: 0.05}",
        formula="loss + coefficient * mean over trajectories of -(1 / |O_i|) sum over O_i of log p, O_i the "
        "tokens between two answers; over = token: one mean over all of them",
        source='Shrivastava et al. 2026, "ECHO", arXiv:2605.24517, equation 3; over = token: prime-rl',
        use="with an environment, where few episodes are solved: failed ones teach how it answers. The paper "
        "finds 0.01 to 0.05 useful, and collapse at 0.2.",
    ),
    Setting(
        name="adaptive_kl",
        title="A KL coefficient that is adapted to hold a target divergence.",
        key="algorithm.kl: {coefficient: 0.001, target: 0.05}",
        formula="c <- c (1 + clip(KL / target - 1, -0.2, 0.2) N / horizon) after each batch",
        source="Ziegler et al. 2019, arXiv:1909.08593",
        use="where a fixed coefficient is too strong early or too weak late.",
    ),
    Setting(
        name="entropy_bonus",
        title="Entropy as a term of the loss.",
        key="algorithm.entropy_coefficient: 0.001",
        formula="loss - c aggregate(H_t), H_t over the whole vocabulary at the sampling temperature",
        source="Williams and Peng 1991; Mnih et al. 2016, arXiv:1602.01783",
        use="against a policy that stops exploring.",
    ),
    Setting(
        name="adaptive_entropy",
        title="An entropy coefficient that is adapted to hold a target entropy.",
        key="algorithm.entropy_target: 0.2",
        formula="c <- clip(c +- 0.005, 0, 1) after each batch, up while H < target",
        source='He et al. 2025, "Skywork-OR1", arXiv:2505.22312',
        use="where a fixed bonus collapses or runs away.",
    ),
    Setting(
        name="top_entropy_tokens",
        title="The policy loss on the tokens with the highest entropy only.",
        key="algorithm.entropy_top_share: 0.2",
        formula="mask_t and H_t among the largest share of the batch's trained tokens, by exact threshold",
        source='Wang et al. 2025, "Beyond the 80/20 Rule", arXiv:2506.01939',
        use="long chains of thought, where few tokens decide.",
    ),
)
