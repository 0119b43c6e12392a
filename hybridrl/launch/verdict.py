"""Decides what a config is refused for; every command gives the same errors in the same words.

Every command has a row in SCOPES, which says what it does not check and why. Torch is imported only if the
options of an algorithm, or code from outside, have to be tried.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hybridrl.algorithms.needs import Needs
from hybridrl.algorithms.rules import algorithm_fits_the_run, may_be_mute
from hybridrl.config.load import LoadedConfig
from hybridrl.config.rules import RuleContext, check
from hybridrl.config.rules.gpus import gpus_are_there
from hybridrl.config.rules.parallel import trainer_shardings
from hybridrl.config.run_shape import trainer_gpus, with_dp
from hybridrl.config.schema import Config
from hybridrl.errors import Absence, AbsentDataError, ConfigError, HybridRLError, ResourceError, refuse
from hybridrl.estimate.gpus import name_of
from hybridrl.hosts.machine import Machine
from hybridrl.launch.environment_setup import unfit_environments
from hybridrl.launch.memory import refuse_too_little_memory
from hybridrl.launch.program_check import unfit_box, unfit_program, unsafe_endpoint
from hybridrl.launch.reward_model_setup import refuse_unfit_reward_model, reward_model_layout
from hybridrl.launch.served_check import unfit_frozen, unfit_judges
from hybridrl.launch.shape import trainer_layout, with_gpus
from hybridrl.layout.base import Layout
from hybridrl.layout.trainers import layout_of
from hybridrl.models import hub
from hybridrl.models.config_json import read_config
from hybridrl.models.make import config_of_made, spec_of_made
from hybridrl.models.spec import ModelSpec
from hybridrl.observe.sink import load_sinks, refuse_missing_sinks
from hybridrl.reshard.divided import refuse_divided_blocks
from hybridrl.rewards.plugin import load_reward
from hybridrl.rollout.base import EngineKind, kind_of, layout_in
from hybridrl.trainer.setup import refuse_unfit_experts, refuse_untried


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What a command does not check, because it cannot know it."""

    devices: Literal["here", "as named", "elsewhere"]
    """Whose GPUs and memory are checked. here: this machine's; as named: those that the config names, else
    this machine's; elsewhere: another machine's, which are not checked."""

    alone: bool = False
    """Whether the launcher has this machine only."""

    fills_gpus: bool = True
    """Whether ranks and engines have to fill the GPUs of the config."""

    trains: bool = True
    """Whether the memory that training takes has to be here."""

    absent: tuple[type, ...] = ()
    """Kinds of errors about files that may be on another machine: they are reported but refuse nothing."""

    why: str


SCOPES: Mapping[str, Scope] = {
    "launch": Scope(
        devices="here",
        alone=True,
        why="nothing is left out; `sft`, `rm`, `--dry-run` and `config check` ask the same",
    ),
    "launch --on ray": Scope(devices="here", why="the Ray that runs already may have more machines"),
    "launch --on slurm": Scope(
        devices="elsewhere",
        why="the job has its own GPUs and memory, and sees these files; the same holds for --submit",
    ),
    "launch --on slurm --dry-run": Scope(
        devices="elsewhere", absent=(Absence,), why="model and data may be on the cluster only"
    ),
    "plan": Scope(
        devices="as named",
        absent=(AbsentDataError,),
        why="it is for GPUs that need not be here, reads no data, and counts memory itself, with activations",
    ),
    "plan --search": Scope(
        devices="as named",
        fills_gpus=False,
        absent=(AbsentDataError,),
        why="as plan, and the search looks for the sizes that fill the GPUs",
    ),
    "eval": Scope(
        devices="here",
        alone=True,
        fills_gpus=False,
        trains=False,
        absent=(AbsentDataError,),
        why="engines alone run, and read the held-out data, which have to be here",
    ),
    "init": Scope(
        devices="elsewhere", absent=(Absence,), why="the config may be launched on another machine"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    loaded: LoadedConfig[Any]
    """The config, with this machine's GPUs if it names none and the scope checks this machine's."""

    model: ModelSpec | None
    """The policy's model. None: it is not here."""

    errors: tuple[HybridRLError, ...]
    absent: tuple[HybridRLError, ...]
    """Errors that do not refuse the config, by Scope.absent."""

    def known(self) -> ModelSpec:
        """The model of a config that is not refused for its absence.

        Raises:
            ConfigErrors: the config is refused.
        """
        refuse(self.errors)
        assert self.model is not None, "a model that is not here was refused"
        return self.model


def verdict(loaded: LoadedConfig[Any], scope: Scope, this: Machine) -> Verdict:
    """All that is wrong with a config of any kind.

    Args:
        this: this machine; a scope with devices elsewhere does not use it.
    """
    machine = _machine(loaded, scope, this)
    loaded = with_gpus(loaded, machine) if machine else loaded
    model, errors = _model(loaded)
    gpus = machine.gpus if machine else ()
    context = RuleContext(
        here=machine is not None,
        alone=scope.alone,
        fills_gpus=scope.fills_gpus,
        num_gpus=len(gpus),
        gpu=name_of(gpus[0].name, gpus[0].memory_bytes) if gpus else None,
        spec=model,
        unreadable=bool(errors),
    )
    errors += check(loaded, context)
    if isinstance(loaded.config, Config):
        errors += _run_errors(loaded, context)
    errors += _unfit_model(loaded, model)
    errors += _sink_errors(loaded, here=scope.devices == "here")
    if isinstance(loaded.config, Config) and scope.devices == "here":
        errors += _missing_engine(loaded)
        errors += _unfit_store(loaded)
        if loaded.config.program is not None:
            errors += map(loaded.locate, unfit_program(loaded.config.program))
    absent = [error for error in errors if isinstance(error, scope.absent)]
    errors = list({str(error): error for error in errors if error not in absent}.values())
    if not errors and model:
        errors = _layout_errors(loaded, model)
    if not errors and model and scope.devices == "here" and scope.trains:
        errors = _refusals(loaded, lambda: refuse_too_little_memory(loaded, model, this))
    return Verdict(loaded=loaded, model=model, errors=tuple(errors), absent=tuple(absent))


def refuse_missing_gpus(loaded: LoadedConfig[Any], machine: Machine) -> None:
    """
    Raises:
        ConfigErrors: this machine has fewer GPUs than the config takes.
    """
    refuse(list(gpus_are_there(loaded, RuleContext(num_gpus=len(machine.gpus), spec=None))))


def _machine(loaded: LoadedConfig[Any], scope: Scope, this: Machine) -> Machine | None:
    """The machine whose devices the rules check; None: no machine's."""
    cluster = loaded.config.cluster
    named = cluster.gpus_per_node is not None or cluster.gpu is not None
    return None if scope.devices == "elsewhere" or (scope.devices == "as named" and named) else this


def _model(loaded: LoadedConfig[Any]) -> tuple[ModelSpec | None, list[HybridRLError]]:
    """The spec of the model, without a download; a model that is still to be made is first made in another
    folder."""
    own, seed = loaded.config.model, loaded.config.run.seed
    try:
        found = hub.find_spec(own.path)
        if found is None and own.make is not None:
            found = spec_of_made(own.make, seed, where=loaded.where("model.make"))
        return found, []
    except HybridRLError as error:
        return None, [loaded.locate(error)]


def _run_errors(loaded: LoadedConfig[Config], context: RuleContext) -> Iterator[HybridRLError]:
    """Errors of the algorithm's plug-ins and of the reward."""
    reward, algorithm = loaded.config.reward, loaded.config.algorithm
    errors = list(algorithm_fits_the_run(loaded, context))
    yield from errors
    if not errors and may_be_mute(algorithm):
        # Imported here: it takes torch.
        from hybridrl.algorithms.mute import refuse_mute

        yield from _refusals(loaded, lambda: refuse_mute(algorithm))
    if (environment := loaded.config.environment) is not None:
        yield from map(loaded.locate, unfit_environments(environment))
    yield from unfit_judges(loaded)
    yield from unfit_frozen(loaded)
    if (program := loaded.config.program) is not None:
        yield from map(loaded.locate, (*unsafe_endpoint(program), *unfit_box(program)))
    if ":" not in reward.name:  # code from outside is loaded in a process that can be killed
        yield from _refusals(loaded, lambda: load_reward(reward.name, reward.options, where="reward"))


def _unfit_model(loaded: LoadedConfig[Any], model: ModelSpec | None) -> Iterator[HybridRLError]:
    """Errors about options and parts of the models that the trainer does not have, and keys about experts
    that a model lacks."""
    actor, cfg = loaded.config.actor, loaded.config
    yield from _refusals(loaded, lambda: layout_of(actor.backend).refuse_options(actor))
    if model is not None:
        yield from _refusals(
            loaded,
            lambda: _refuse_unbuildable(loaded, model),
            lambda: refuse_unfit_experts(actor.moe, model, where="actor.moe"),
        )
    if isinstance(cfg, Config):
        yield from _refusals(loaded, lambda: refuse_unfit_reward_model(cfg))


def _refuse_unbuildable(loaded: LoadedConfig[Any], model: ModelSpec) -> None:
    """
    Raises:
        ModelError: the trainer cannot build the model, or computes another one.
    """
    own, backend = loaded.config.model, loaded.config.actor.backend
    layout_of(backend).refuse_unbuildable(model, where="model")
    if model.has_table:
        return
    folder, seed = hub.find_folder(own.path), loaded.config.run.seed
    if folder is not None or own.make is None:
        config = read_config(folder or own.path)
    else:
        config = config_of_made(own.make, seed, where=loaded.where("model.make"))
    refuse_untried(backend, config, where="model")


def _sink_errors(loaded: LoadedConfig[Any], *, here: bool) -> list[HybridRLError]:
    """What sinks are refused for; what they need of a machine is asked where the run is driven."""
    observe, ask = loaded.config.observe, refuse_missing_sinks if here else load_sinks
    return _refusals(loaded, lambda: ask(observe.sinks))


def _layout_errors(loaded: LoadedConfig[Any], model: ModelSpec) -> list[HybridRLError]:
    """Errors that only the layout of the shards shows; checked if no rule refuses the config."""
    cfg, errors = loaded.config, list[HybridRLError]()
    for key, sharding in trainer_shardings(cfg):
        whole = with_dp(sharding, trainer_gpus(cfg))
        for error in _refusals(loaded, lambda whole=whole: trainer_layout(cfg, model, whole)):
            errors.append(ConfigError(f"{key}: {error.what}", where=loaded.where(key), fix=error.fix))
    if isinstance(cfg, Config):
        errors += _engine_errors(loaded, model)
        own = cfg.reward_model is not None and cfg.reward_model.parallel is not None
        for error in _refusals(loaded, lambda: reward_model_layout(cfg)):
            what, place = f"the reward model: {error.what}", ("reward_model.parallel", "reward_model")
            fix = error.fix if own else f"{error.fix}; or give it ranks with reward_model.parallel"
            errors.append(ConfigError(what, where=loaded.where(*place), fix=fix))
    return errors


def _engine_errors(loaded: LoadedConfig[Config], model: ModelSpec) -> Iterator[HybridRLError]:
    """Errors about what the config asks of its kind of engine and that kind cannot do."""
    cfg, key = loaded.config, "rollout.parallel"
    kind = kind_of(cfg.rollout.engine)
    yield from map(loaded.locate, kind.refuse(cfg, model))
    yield from _head_errors(loaded, model, kind)
    yield from _precision_errors(loaded, kind)
    if not model.has_table:
        yield from _loader_errors(loaded, model)
    fp8 = cfg.rollout.precision == "fp8"
    where = loaded.where(key, *(["rollout.precision"] if fp8 else []))
    for error in _refusals(
        loaded, lambda: layout_in(kind, model, cfg.rollout.parallel, cfg.rollout.precision)
    ):
        yield ConfigError(f"{key}: {error.what}", where=where, fix=error.fix)
        return
    if fp8:
        yield from _divided_blocks(loaded, model, layout_in(kind, model, cfg.rollout.parallel, "fp8"))


def _divided_blocks(
    loaded: LoadedConfig[Config], model: ModelSpec, engine: Layout
) -> Iterator[HybridRLError]:
    """Errors about FP8 blocks that no trainer rank has whole."""
    cfg = loaded.config
    whole = with_dp(cfg.actor.parallel, trainer_gpus(cfg))
    if _refusals(loaded, lambda: trainer_layout(cfg, model, whole)):
        return  # which is reported already
    where = loaded.where("actor.parallel", "rollout.precision")
    for error in _refusals(loaded, lambda: refuse_divided_blocks(trainer_layout(cfg, model, whole), engine)):
        yield ConfigError(f"rollout.precision = fp8: {error.what}", where=where, fix=error.fix)


def _precision_errors(loaded: LoadedConfig[Config], kind: EngineKind) -> Iterator[HybridRLError]:
    """Errors about FP8 in engines that this project cannot start with it."""
    rollout = loaded.config.rollout
    for key in ("precision", "kv_cache_precision"):
        if getattr(rollout, key) == "fp8" and not getattr(kind, "computes_fp8", False):
            yield ConfigError(
                f"rollout.{key} = fp8: rollout.engine = {rollout.engine} is started in bf16 only; where its "
                "quantised weights are is not known",
                where=loaded.where(f"rollout.{key}", "rollout.engine"),
                fix=f"rollout.engine: sglang, or rollout.{key}: bf16",
            )


def _head_errors(loaded: LoadedConfig[Config], model: ModelSpec, kind: EngineKind) -> Iterator[HybridRLError]:
    """Errors about a loss that asks for the engine's likeliest tokens."""
    cfg, where = loaded.config, loaded.where("algorithm.loss")
    asked = Needs.of(cfg.algorithm).head_tokens
    loss, engine = cfg.algorithm.loss.name, cfg.rollout.engine
    if asked and not getattr(kind, "reports_heads", False):
        yield ConfigError(
            f"algorithm.loss = {loss} needs the likeliest tokens of the engine; rollout.engine = {engine} "
            "reports the sampled ones only",
            where=where,
            fix="rollout.engine: sglang, or another loss",
        )
    if asked > model.vocab_size:
        yield ConfigError(
            f"algorithm.loss = {loss}: head_tokens = {asked} exceeds the vocabulary of {model.vocab_size}",
            where=where,
            fix=f"algorithm.loss={{name: {loss}, head_tokens: {model.vocab_size}}}, or fewer",
        )


def _loader_errors(loaded: LoadedConfig[Config], model: ModelSpec) -> Iterator[HybridRLError]:
    """Errors about the way of weights into the engines, of which a model without a table has only one."""
    path, nodes = loaded.config.rollout.weight_path, loaded.config.cluster.nodes
    lacks = (
        f"there is no model table for {model.family}, so its weights can only go through the engine's loader"
    )
    if path == "in_place":
        yield ConfigError(
            f"{lacks}, and rollout.weight_path = in_place",
            where=loaded.where("rollout.weight_path"),
            fix="rollout.weight_path=engine_api, or write a table: docs/extend_model.md",
        )
    if nodes > 1:
        yield ResourceError(
            f"{lacks}, which takes the memory of one machine; cluster.nodes = {nodes}",
            where=loaded.where("cluster.nodes"),
            fix="cluster.nodes=1, or write a table: docs/extend_model.md",
        )


def _missing_engine(loaded: LoadedConfig[Config]) -> list[HybridRLError]:
    """Errors about what this machine lacks to run the engines."""
    cfg = loaded.config
    return [loaded.locate(error) for error in kind_of(cfg.rollout.engine).missing(cfg)]


def _unfit_store(loaded: LoadedConfig[Config]) -> list[HybridRLError]:
    url = loaded.config.run.store
    if url is None:
        return []
    # Imported here: it takes torch.
    from hybridrl.trainer.store import refuse_unopenable

    return _refusals(loaded, lambda: refuse_unopenable(url))


def _refusals(loaded: LoadedConfig[Any], *trials: Callable[[], object]) -> list[HybridRLError]:
    """The errors that the trials raise, with their places in the config."""
    found = []
    for trial in trials:
        try:
            trial()
        except HybridRLError as error:
            found.append(loaded.locate(error))
    return found
