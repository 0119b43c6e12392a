"""Every key of a config, once, with its only default. `hybridrl config explain` prints the text under a key.

Names carry units: _prompts, _tokens, _steps, _s. Checks between sections are in rules/, presets in
presets.py.
"""

from typing import Any, Literal, TypeVar

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from hybridrl.config.batch import BatchConfig
from hybridrl.config.bundle import BundleConfig
from hybridrl.config.cluster import ClusterConfig
from hybridrl.config.environment import EnvironmentConfig
from hybridrl.config.images import ImagesConfig
from hybridrl.config.judge import FrozenConfig, JudgeConfig
from hybridrl.config.observe import ObserveConfig
from hybridrl.config.program import ProgramConfig
from hybridrl.config.rollout import RolloutConfig
from hybridrl.config.section import Names, PluginConfig, Section
from hybridrl.config.signals import HintConfig, ObservationsConfig
from hybridrl.config.source import SourceConfig
from hybridrl.config.training import (
    ActorConfig,
    CriticConfig,
    ProcessModelConfig,
    ReferenceConfig,
    TrainParallel,
)

Whole = TypeVar("Whole", bound=Section)
"""The config of a run of any kind."""


class ModelConfig(Section):
    """The model that is trained: a folder, a name on the hub, or a program that makes one."""

    path: str
    """Folder in Hugging Face format (config.json, safetensors, tokenizer), where {seed} stands for run.seed;
    or a name on the hub, as Qwen/Qwen3-8B, which `launch` takes from the cache (HF_HOME) or downloads."""

    make: str | None = None
    """module:function that writes `path` when it is absent, called as function(folder, seed)."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class DataConfig(Section):
    """The prompts of a run: where they come from, and how they become the text that the policy is given."""

    train: SourceConfig
    """Prompts to train on."""

    heldout: SourceConfig | None = None
    """Prompts to evaluate on; None: no evaluation."""

    prompt_field: str = "prompt"
    """Column with the question: a string, or a list of chat messages."""

    system_prompt: str | None = None
    """Put before every prompt as a system message; needs chat_template: model."""

    chat_template: Literal["model", "none"] = "model"
    """model: the tokenizer's chat template with a generation prompt; none: the text as it is."""

    shuffle: bool = True
    """A new order at each epoch, from run.seed."""

    images: ImagesConfig | None = None
    """Pictures of the prompts, for a model that reads them. None: prompts are text."""


class RewardConfig(PluginConfig):
    """The function that judges an answer, and its options: every further key is one."""

    answer_field: str = "answer"
    """Column of the data with the reference answer; reward_model.ground_truth is a field inside a column."""

    sees: Literal["last_turn", "all_turns", "transcript"] = "last_turn"
    """What is judged of an episode of several turns: the last answer, all answers, or everything after the
    prompt, with messages of the environment and results of tools."""

    timeout_s: PositiveFloat = 10.0
    """One trajectory's reward may take this long; then its process is killed and the run stops."""

    memory_gb: PositiveFloat = 4.0
    """A reward may take this much memory (GB) in each process beyond what loading it took; then Python raises
    MemoryError in it."""

    num_workers: PositiveInt = 1
    """Processes that compute rewards."""

    variables: Names = ()
    """Environment variables that these processes get in addition to a documented base, such as the key of a
    service that judges."""

    max_unjudged: NonNegativeFloat = Field(default=0.25, le=1.0)
    """Share of the answers of a step, or of an evaluation, that may stay without a reward because a judge
    failed (http, judge): they are not trained on. More end the run; 0: the first one does."""

    min_gold: NonNegativeFloat | None = Field(default=None, le=1.0)
    """Share of the data's reference answers that the reward has to accept, with more than 0, or the run is
    refused. None: 0.95; for code of yours without a method `gold` 0, since it may expect another form."""


REWARD_MODEL = "reward_model"
"""Part of a reward that the reward model gives, before its weight; named as the section."""


class RewardModelConfig(Section):
    """A model that scores whole answers, prompt and answer as they were sampled: `hybridrl rm` trains one.

    Its score is added to what the section `reward` gives, before dynamic sampling and shaping; it is never
    trained. With `reward: none` it judges alone. Held-out answers are judged by `reward`; with
    `reward: none`, by this model.
    """

    path: str
    """Folder or name on the hub, as model.path: one of transformers' ...ForSequenceClassification with one
    label, of any family and size, with the policy's tokenizer."""

    weight: FiniteFloat = 1.0
    """Weight of its score: the reward of an answer is that of the section `reward` plus weight times
    score."""

    parallel: TrainParallel | None = None
    """Parallel layout on dedicated ranks. None: the actor's ranks, with the actor's parallel layout."""

    microbatch_tokens: PositiveInt | None = None
    """Tokens of a microbatch on dedicated ranks, like actor.microbatch_tokens. None: the actor's number."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class KLConfig(Section):
    """The KL divergence to the reference policy: how much it counts, and where it enters."""

    coefficient: NonNegativeFloat = 0.0
    """Weight of the KL divergence to the reference policy; 0: no reference policy is held."""

    estimator: str = "k3"
    """File name in hybridrl.algorithms.kl."""

    place: Literal["loss", "reward"] = Field(default="loss", alias="in")
    """loss: added to the objective; reward: subtracted from each token's reward before the advantage."""

    target: PositiveFloat | None = None
    """Divergence to hold, in nats per token, by adapting the coefficient. None: the coefficient is
    constant."""

    horizon: PositiveInt = 10_000
    """If there is a target: trajectories over which an error of 20 % moves the coefficient by 20 %."""

    @property
    def in_reward(self) -> bool:
        """Whether the KL term is a cost of each token, with a coefficient above 0."""
        return self.place == "reward" and self.coefficient > 0


class DynamicSamplingConfig(Section):
    """Further prompts are answered until enough groups have answers of different reward."""

    max_rounds: PositiveInt = 10
    """A policy update samples at most max_rounds x batch.prompts_per_step prompts; then it trains on the
    groups that were found."""

    lowest: float = Field(default=0.0, ge=0.0, le=1.0)
    """A group is dropped too if a smaller share of its answers is solved."""

    highest: float = Field(default=1.0, ge=0.0, le=1.0)
    """A group is dropped too if a larger share of its answers is solved."""

    solved_above: float = 0.0
    """An answer is solved if its reward is above this."""

    @model_validator(mode="after")
    def _some_group_stays(self) -> "DynamicSamplingConfig":
        if self.lowest > self.highest:
            raise ValueError(
                f"lowest = {self.lowest} is above highest = {self.highest}: every group is dropped"
            )
        return self


class AlgorithmConfig(Section):
    """The algorithm: a preset, or its advantage estimator, loss and corrections one by one."""

    preset: str | None = None
    """A named row of choices for the keys below; keys that the config sets itself win."""

    samples_per_prompt: PositiveInt = 8
    """Answers sampled for each prompt: the group."""

    estimator: PluginConfig = PluginConfig(name="grpo")
    """Advantage estimator."""

    loss: PluginConfig = PluginConfig(name="ppo_clip")
    """Policy loss."""

    aggregate: str = "token_mean"
    """How token losses become one number; denominators are taken over the global minibatch."""

    kl: KLConfig = KLConfig()

    process_model: ProcessModelConfig = ProcessModelConfig()

    teacher: str | None = None
    """Model that estimator distillation or teacher_coefficient learns from, as in model.path: of the same
    architecture, vocabulary and sizes as the policy. None: no teacher is held."""

    teacher_coefficient: NonNegativeFloat = 0.0
    """Distillation in addition to any estimator: the weight of the teacher's log-probability minus the
    policy's in the advantage of every token."""

    hint: HintConfig | None = None
    """Self-distillation: the teacher reads a hint. Without algorithm.teacher it is the policy itself, before
    each update. None: the teacher reads what the policy reads."""

    observations: ObservationsConfig = ObservationsConfig()

    entropy_coefficient: NonNegativeFloat = 0.0
    """Weight of the entropy bonus, subtracted from the objective."""

    entropy_target: PositiveFloat | None = None
    """Mean entropy to hold, in nats, by moving the coefficient by 0.005 per policy update. None: it is
    constant."""

    entropy_top_share: PositiveFloat = Field(default=1.0, le=1.0)
    """The policy loss trains on this share of the tokens, those with the highest entropy; 1: on all."""

    shaping: tuple[str | dict[str, Any], ...] = ()
    """Changes to the rewards before the advantage, in order: file names in hybridrl.algorithms.shaping, or
    {name: overlong, limit: 8192, margin: 1024}."""

    dynamic_sampling: DynamicSamplingConfig | None = None
    """Replace groups without a learning signal; {} for the defaults. None: train on every group."""

    drop_truncated: bool = False
    """Answers that were truncated at max_response_tokens, and episodes that ran out of turns or tokens, count
    in their group's baseline but are not trained on."""

    guards: Literal["stop", "off"] = "stop"
    """stop: a step that is certainly wrong ends the run, a suspicious one warns; see docs/algorithms.md."""

    correction: tuple[str | dict[str, Any], ...] = ()
    """Corrections of the gap between engine and trainer probabilities, in order: file names in
    hybridrl.algorithms.corrections, or {name: token_is, cap: 2.0}."""


class EvaluateConfig(Section):
    """How the policy answers the prompts of data.heldout when it is evaluated."""

    samples_per_prompt: PositiveInt = 1
    """k of mean@k."""

    temperature: NonNegativeFloat = 0.0
    """0: greedy."""

    top_p: PositiveFloat = Field(default=1.0, le=1.0)
    """Sample from the likeliest tokens that have this probability together. Training always samples from the
    whole vocabulary."""

    top_k: PositiveInt | None = None
    """Sample from so many of the likeliest tokens. None: from all."""

    min_p: NonNegativeFloat = Field(default=0.0, le=1.0)
    """Only tokens are sampled whose probability is at least this share of the likeliest one's."""

    max_response_tokens: PositiveInt | None = None
    """An answer is truncated at this length. None: rollout.max_response_tokens, which may not be exceeded."""

    max_turns: PositiveInt | None = None
    """Answers of the policy in an episode. None: as many as its environment says."""


class TrainingRun(Section):
    """A run of any kind of training."""

    name: str
    """Folder of the run inside `folder`."""

    folder: str = "runs"
    """Folder of all runs and of the MLflow store."""

    steps: PositiveInt = 100
    """Updates of the model; in reinforcement learning, policy updates."""

    seed: NonNegativeInt = 0
    """Every random choice of the run follows from it: order of the data, sampling, new weights."""

    deterministic: bool = False
    """On GPUs, training uses only algorithms that give the same bits from the same input, and fails at an
    operation that has none; SGLang samples by seeds, and a batch does not change its results. Both are
    slower. On a CPU this changes nothing: results are repeatable there."""

    save_every: NonNegativeInt = 0
    """Updates between checkpoints; 0: only one at the end."""

    save_on_interrupt: bool = False
    """Ctrl-C lets the step end and saves it, as SIGTERM does; a second one ends the run at once. False: the
    first one ends it at once, and steps since the last checkpoint are lost."""

    evaluate_every: NonNegativeInt = 10
    """Updates between evaluations on data.heldout; 0: only before and after the run."""

    keep_checkpoints: PositiveInt = 2
    """Older ones are deleted once a newer one is committed."""

    keep_every: NonNegativeInt = 0
    """Checkpoints of steps that this number divides are never deleted; 0: all but the newest are."""

    export: bool = True
    """Write the final model in Hugging Face format."""


class RunConfig(TrainingRun):
    """A run: its name and folder, how long it is, and what is saved when."""

    async_save: bool = True
    """A checkpoint is copied to host memory (12 bytes a parameter over all ranks) and written while the
    training goes on; the next one waits for it. False: the training waits."""

    on_save_error: Literal["halt", "go_on"] = "halt"
    """If a checkpoint cannot be written, as on a full disk, the run ends, or goes on with a warning: earlier
    checkpoints stay, and the next one is tried again. The last checkpoint of a run must be written."""

    max_restarts: NonNegativeInt = 0
    """How often in a row, without a new checkpoint, a run whose trainer ranks or reward workers died or hung
    goes on by itself from the last checkpoint. These start again and engines stay; the second time, all
    start again. A run without a checkpoint ends."""

    store: str | None = None
    """URL of fsspec, as s3://bucket/runs, where checkpoints are copied to, below the name of the run.
    --resume takes one from there that is newer than those of the run folder. None: they are there only."""

    bundle: BundleConfig = BundleConfig()

    export_every: NonNegativeInt = 0
    """Policy updates between exports in Hugging Face format, which are made from checkpoints while the
    training goes on; 0: only the final one."""

    sample_every: PositiveInt = 10
    """Policy updates between rollouts that are kept as text."""

    samples_kept: PositiveInt = 4
    """Rollouts kept as text at each of these steps."""


class Config(Section):
    """The config of a run of reinforcement learning."""

    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    environment: EnvironmentConfig | None = None
    reward_model: RewardModelConfig | None = None
    run: RunConfig
    algorithm: AlgorithmConfig = AlgorithmConfig()
    batch: BatchConfig = BatchConfig()
    actor: ActorConfig = ActorConfig()
    critic: CriticConfig = CriticConfig()
    reference: ReferenceConfig = ReferenceConfig()
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    evaluate: EvaluateConfig = EvaluateConfig()
    cluster: ClusterConfig = ClusterConfig()
    observe: ObserveConfig = ObserveConfig()
    judge: JudgeConfig | None = None
    frozen: FrozenConfig | None = None
    program: ProgramConfig | None = None

    @property
    def has_episodes(self) -> bool:
        """Whether an answer is an episode of several turns, with an environment or a program."""
        return self.environment is not None or self.program is not None

    @model_validator(mode="after")
    def _model_of_the_seed(self) -> "Config":
        return with_model_of_the_seed(self, self.model, self.run.seed)


def with_model_of_the_seed(config: Whole, model: ModelConfig, seed: int) -> Whole:
    """The config with {seed} in model.path filled in: a made model differs by seed, so its folder may too."""
    path = model.path.replace("{seed}", str(seed))
    if path == model.path:
        return config
    return config.model_copy(update={"model": model.model_copy(update={"path": path})})
