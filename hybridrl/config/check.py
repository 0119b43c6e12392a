"""What pairs of keys, and the world around them, must satisfy: a list of named rules. Imports no torch.

A rule yields an error for each mistake it finds and never raises, so that a person sees all mistakes at once.
An error names both keys and both values; its place is the key that is easiest to change.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridrl.config.adapters import adapters_fit_the_model, examples_train_all_weights
from hybridrl.config.cuts import trainer_cuts, wrong_cut
from hybridrl.config.devices import gpus_are_there
from hybridrl.config.fp8 import fp8_fits_the_run
from hybridrl.config.load import LoadedConfig
from hybridrl.config.memory import GIB, Need
from hybridrl.config.reward_model import reward_model_fits_the_run
from hybridrl.config.roles import microbatch_limits, wrong_roles
from hybridrl.config.schema import Config, SourceConfig
from hybridrl.config.training import TrainParallel
from hybridrl.errors import ConfigError, DataError, HybridRLError, ModelError, ResourceError
from hybridrl.models import hub
from hybridrl.models import spec as models
from hybridrl.models.published import published_names


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What rules need to know besides the config."""

    here: bool = True
    """Whether the run would use this machine. Without, rules about devices and memory have nothing to say."""

    num_gpus: int
    """Of this machine."""

    available_bytes: int
    """Memory for training and rollout: of one GPU, or of the machine without GPUs."""

    spec: models.ModelSpec | None
    """None: the model folder is not there, and another rule says so; or it is made at launch."""


Rule = Callable[[LoadedConfig, World], Iterator[HybridRLError]]


def check(loaded: LoadedConfig, world: World) -> list[HybridRLError]:
    """Everything that the rules find wrong, in the order of RULES."""
    return [error for rule in RULES for error in rule(loaded, world)]


def run_name_is_one_folder(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    name = loaded.config.run.name
    if Path(name).name != name or name in {"", ".."}:
        yield ConfigError(
            f"run.name = {name!r} is not a folder name", where=loaded.where("run.name"), fix="set run.folder"
        )


def model_exists(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    path = loaded.config.model.path
    downloadable = hub.is_name(path) and world.spec is not None
    if loaded.config.model.make is None and hub.find_folder(path) is None and not downloadable:
        yield ModelError(
            f"no model folder at model.path = {path}",
            where=loaded.where("model.path"),
            fix=_near_model(path),
        )


def _near_model(path: str) -> str:
    known = [str(found.parent) for found in Path(path).parent.glob("*/config.json")]
    if near := difflib.get_close_matches(path, known, n=1, cutoff=0.5):
        return f"there is {near[0]}"
    if not hub.is_name(path):
        return "download it in Hugging Face format and give its folder"
    near = difflib.get_close_matches(path, published_names(), n=1, cutoff=0.8)
    mean = f"did you mean {near[0]}? Otherwise " if near else ""
    return f"{mean}hf download {path} config.json gets what can be checked before a launch"


def data_exists(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    for key, source in _sources(loaded.config):
        path = Path(source.path or "")
        if source.path is None:
            continue
        if path.suffix not in {".jsonl", ".parquet"}:
            yield DataError(
                f"{key} = {path} is no prompt file",
                where=loaded.where(f"{key}.path"),
                fix="give .jsonl or .parquet",
            )
        elif not path.is_file():
            files = [
                str(found)
                for ending in ("jsonl", "parquet")
                for found in sorted(path.parent.glob(f"*.{ending}"))
            ]
            near = difflib.get_close_matches(str(path), files, n=2, cutoff=0.4) or files[:3]
            fix = (
                f"there is {', '.join(near)}" if near else f"{path.parent} has no .jsonl and no .parquet file"
            )
            yield DataError(f"no file at {key} = {path}", where=loaded.where(f"{key}.path"), fix=fix)


def chat_template_is_there(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    data, folder = loaded.config.data, hub.find_folder(loaded.config.model.path)
    if data.chat_template == "none" and data.system_prompt is not None:
        yield ConfigError(
            "data.system_prompt needs a chat template, data.chat_template = none",
            where=loaded.where("data.system_prompt"),
            fix="set data.chat_template: model, or put the text into the prompts",
        )
    if data.chat_template == "model" and folder and not has_chat_template(folder):
        yield ConfigError(
            f"data.chat_template = model, but the tokenizer of {folder} has no chat template",
            where=loaded.where("data.chat_template", "model.path"),
            fix="data.chat_template: none takes the prompts as they are",
        )


def teacher_is_of_the_policys_kind(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    teacher, where = loaded.config.algorithm.teacher, loaded.where("algorithm.teacher")
    if teacher is None:
        return
    try:
        spec = hub.find_spec(teacher)
    except ModelError as error:
        yield error
        return
    if spec is None:
        yield ModelError(f"no model folder at algorithm.teacher = {teacher}", where=where, fix="name one")
        return
    if world.spec is not None and spec != world.spec:
        yield ModelError(
            f"the teacher {teacher} is not of the architecture and sizes of {loaded.config.model.path}",
            where=where,
            fix="use a teacher that differs in its weights only",
        )


def minibatches_divide_the_step(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    batch = loaded.config.batch
    size = batch.minibatch_prompts or batch.prompts_per_step
    if batch.prompts_per_step % size:
        above = -(-batch.prompts_per_step // size) * size
        near = sorted({above, max(size, above - size)}, key=lambda n: abs(n - batch.prompts_per_step))
        yield ConfigError(
            f"batch.prompts_per_step = {batch.prompts_per_step} is not a multiple of "
            f"batch.minibatch_prompts = {size}",
            where=loaded.where("batch.prompts_per_step", "batch.minibatch_prompts"),
            fix=f"use {_one_of(near)}",
        )


def ranks_have_work(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    config = loaded.config
    prompts = config.batch.minibatch_prompts or config.batch.prompts_per_step
    answers, dp = prompts * config.algorithm.samples_per_prompt, config.actor.parallel.dp or 1
    if answers < dp:
        yield ConfigError(
            f"actor.parallel.dp = {dp} ranks share {answers} trajectories of a minibatch",
            where=loaded.where("actor.parallel.dp"),
            fix=f"use at most {answers}",
        )


def actor_parallel_divides_the_model(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    yield from _trainer_parallel(loaded, world, "actor.parallel", loaded.config.actor.parallel)


def other_trainers_divide_the_model(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    for key, cut in trainer_cuts(loaded.config)[1:]:
        yield from _trainer_parallel(loaded, world, key, cut)


def precision_suits_the_model(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    if loaded.config.actor.precision == "fp16" and world.spec is not None and world.spec.num_experts:
        what = f"actor.precision = fp16 has one loss scale, {_model(loaded)} has experts that need their own"
        yield ConfigError(what, where=loaded.where("actor.precision"), fix="use bf16")


def engine_parallel_divides_the_model(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    if world.spec is not None:
        yield from _tensor_parallel(
            loaded, world.spec, "rollout.parallel.tp", loaded.config.rollout.parallel.tp
        )


def a_trajectory_fits_a_microbatch(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    for key, limit in microbatch_limits(loaded.config):
        yield from _longest(loaded, limit, f"{key} = {limit}", key, "raise it to {}")


def roles_fit_the_run(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    yield from wrong_roles(loaded)


def a_trajectory_fits_the_model(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    if world.spec is not None:
        limit = world.spec.max_positions
        name, key = f"the {limit} positions of {_model(loaded)}", "rollout.max_response_tokens"
        yield from _longest(loaded, limit, name, key, "lower both to {limit} together")


def a_trajectory_fits_the_cache(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    limit = loaded.config.rollout.kv_cache_tokens
    if limit is not None:
        yield from _longest(
            loaded, limit, f"rollout.kv_cache_tokens = {limit}", "rollout.kv_cache_tokens", "raise it to {}"
        )


def lag_is_shorter_than_the_run(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    lag, steps = loaded.config.batch.max_lag, loaded.config.run.steps
    if lag and lag >= steps:
        yield ConfigError(
            f"batch.max_lag = {lag} reaches over the whole run, run.steps = {steps}",
            where=loaded.where("batch.max_lag", "run.steps"),
            fix="use 0 for on-policy, 1 to overlap rollout with training",
        )


def schedule_fits_the_run(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    config, optimizer = loaded.config, loaded.config.actor.optimizer
    updates = config.run.steps * optimizer_steps(config)
    if optimizer.warmup_steps and optimizer.warmup_steps >= updates:
        yield ConfigError(
            f"actor.optimizer.warmup_steps = {optimizer.warmup_steps} never ends, "
            f"the run has {updates} optimizer steps",
            where=loaded.where("actor.optimizer.warmup_steps", "run.steps"),
            fix=f"use fewer than {updates}; actor.optimizer.warmup_steps=0 for a short try",
        )
    if optimizer.min_lr and (optimizer.schedule == "constant" or optimizer.min_lr > optimizer.lr):
        why = (
            "has no effect with schedule constant"
            if optimizer.schedule == "constant"
            else f"is above lr = {optimizer.lr:g}"
        )
        yield ConfigError(
            f"actor.optimizer.min_lr = {optimizer.min_lr:g} {why}",
            where=loaded.where("actor.optimizer.min_lr"),
            fix="use schedule linear or cosine, and a min_lr below lr",
        )
    if not all(0 <= beta < 1 for beta in optimizer.betas):
        place = loaded.where("actor.optimizer.betas")
        yield ConfigError(
            f"actor.optimizer.betas = {list(optimizer.betas)}",
            where=place,
            fix="each is at least 0 and below 1",
        )


def greedy_answers_once(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    evaluate = loaded.config.evaluate
    if evaluate.samples_per_prompt > 1 and evaluate.temperature == 0:
        yield ConfigError(
            f"evaluate.samples_per_prompt = {evaluate.samples_per_prompt} greedy answers are all the same",
            where=loaded.where("evaluate.samples_per_prompt"),
            fix="set evaluate.temperature, or one sample",
        )


def memory_is_enough(loaded: LoadedConfig, world: World) -> Iterator[HybridRLError]:
    if world.spec is None or not world.here:
        return
    need = Need.of(loaded.config, world.spec, on_gpu=world.num_gpus > 0)
    if need.peak_bytes > world.available_bytes:
        what, has = ("a GPU", "has") if world.num_gpus else ("the machine", "has available")
        yield ResourceError(
            f"{_model(loaded)} needs at least {need.peak_bytes / GIB:.1f} GiB ({need.describe()}), "
            f"{what} {has} {world.available_bytes / GIB:.1f} GiB",
            where=loaded.where("model.path"),
            fix="use a smaller model"
            if not world.num_gpus
            else "use a smaller model, or raise actor.parallel.tp or pp",
        )


RULES: Sequence[Rule] = (
    run_name_is_one_folder,
    model_exists,
    data_exists,
    chat_template_is_there,
    teacher_is_of_the_policys_kind,
    reward_model_fits_the_run,
    minibatches_divide_the_step,
    ranks_have_work,
    actor_parallel_divides_the_model,
    other_trainers_divide_the_model,
    precision_suits_the_model,
    fp8_fits_the_run,
    adapters_fit_the_model,
    engine_parallel_divides_the_model,
    a_trajectory_fits_a_microbatch,
    roles_fit_the_run,
    a_trajectory_fits_the_model,
    a_trajectory_fits_the_cache,
    lag_is_shorter_than_the_run,
    schedule_fits_the_run,
    greedy_answers_once,
    gpus_are_there,
    memory_is_enough,
)


EXAMPLE_RULES: Sequence[Rule] = (
    examples_train_all_weights,
    run_name_is_one_folder,
    model_exists,
    actor_parallel_divides_the_model,
    fp8_fits_the_run,
    gpus_are_there,
)
"""Of training on examples: those of a run of reinforcement learning that hold for it as well, and its own."""


def optimizer_steps(config: Config) -> int:
    """Optimizer steps of one policy update."""
    batch = config.batch
    return batch.prompts_per_step // (batch.minibatch_prompts or batch.prompts_per_step) * batch.epochs


def _sources(config: Config) -> Iterator[tuple[str, SourceConfig]]:
    yield "data.train", config.data.train
    if config.data.heldout is not None:
        yield "data.heldout", config.data.heldout


def has_chat_template(folder: Path) -> bool:
    """Where transformers looks: a file of its own, or a key of the tokenizer's."""
    written = folder / "tokenizer_config.json"
    apart = any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json"))
    return apart or (written.exists() and '"chat_template"' in written.read_text("utf-8"))


def _trainer_parallel(
    loaded: LoadedConfig, world: World, key: str, cut: TrainParallel
) -> Iterator[HybridRLError]:
    if world.spec is not None:
        yield from _tensor_parallel(loaded, world.spec, f"{key}.tp", cut.tp)
    yield from wrong_cut(loaded, key, cut, world.spec)


def _tensor_parallel(
    loaded: LoadedConfig, spec: models.ModelSpec, key: str, tp: int
) -> Iterator[HybridRLError]:
    def fits(size: int) -> bool:
        return spec.heads_divide(size) and spec.ffn_divides(size)

    if fits(tp):
        return
    good = [size for size in _divisors(spec.num_heads) if fits(size)]
    if spec.num_heads % tp:
        why = f"does not divide the {spec.num_heads} attention heads"
    elif not spec.ffn_divides(tp):
        why = f"does not divide the {' and '.join(map(str, spec.ffn_sizes))} feed-forward columns"
    else:
        why = f"neither divides the {spec.num_kv_heads} key-value heads nor is a multiple of them"
    what = f"{key} = {tp} {why} of {_model(loaded)}"
    yield ConfigError(what, where=loaded.where(key), fix=f"use {_one_of(good)}")


def _longest(loaded: LoadedConfig, limit: int, name: str, key: str, fix: str) -> Iterator[HybridRLError]:
    rollout = loaded.config.rollout
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    if longest > limit:
        yield ConfigError(
            f"rollout.max_prompt_tokens + max_response_tokens = {longest} is more than {name}",
            where=loaded.where(key, "rollout.max_response_tokens", "rollout.max_prompt_tokens"),
            fix=fix.format(longest, limit=limit),
        )


def _model(loaded: LoadedConfig) -> str:
    return Path(loaded.config.model.path).name


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]


def _one_of(numbers: Sequence[int]) -> str:
    *head, last = map(str, numbers)
    return f"{', '.join(head)} or {last}" if head else last
