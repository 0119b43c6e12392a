"""Between a config and the first process: every check that needs no worker, and lines that say what runs."""

from collections.abc import Callable
from pathlib import Path

from hybridrl.algorithms.catalog import flat
from hybridrl.columns import given_by
from hybridrl.config.load import LoadedConfig, values
from hybridrl.config.presets import PRESETS
from hybridrl.config.rules import World, check
from hybridrl.config.rules.gpus import gpus_are_there
from hybridrl.config.rules.parallel import trainer_cuts
from hybridrl.config.schema import Config
from hybridrl.config.training import TrainParallel
from hybridrl.errors import ConfigError, DataError, HybridRLError, ModelError, ResourceError, refuse
from hybridrl.hosts.machine import Machine
from hybridrl.launch.column_groups import columns_elsewhere
from hybridrl.launch.devices import separate_engines, unshared_gpus
from hybridrl.launch.memory import refuse_too_little_memory
from hybridrl.launch.reward_model import refuse_unfit_reward_model, reward_model_layout
from hybridrl.launch.shape import RunShape, trainer_layout, with_dp
from hybridrl.layout.trainers import layout_of
from hybridrl.models import hub
from hybridrl.models import spec as models
from hybridrl.models.make import find_maker, make_model
from hybridrl.rollout.base import kind_of
from hybridrl.trainer.setup import refuse_unfit_experts

Say = Callable[[str, str], None]
"""Prints a line: its heading, its text."""


def preflight(
    loaded: LoadedConfig, machine: Machine | None, say: Say, *, make_model: bool, needs_files: bool = True
) -> None:
    """Check a config against this machine, make its model if it has to be made, and say what will run.

    Args:
        machine: None: the run takes place elsewhere; rules about devices and memory wait.
        make_model: write model.path with model.make when it is absent; without, rules about that model wait.
        needs_files: without, model and data may be on another machine; what is not here is said.

    Raises:
        ConfigErrors: everything that is wrong.
        ResourceError: nothing is, but this machine has too little memory.
    """
    if machine:
        say("doctor", machine.describe())
    spec, unreadable = _spec(loaded)
    wrong = _model_errors(loaded, machine, spec)
    away = [] if needs_files else [error for error in wrong if _is_absence(error, spec)]
    refuse(unreadable + [error for error in wrong if error not in away] + _plugin_errors(loaded))
    for error in away:
        say("not here", f"{error.what}  ({error.where})")
    made = spec is None and make_model
    if made:
        spec = _make_model(loaded)
        refuse(_model_errors(loaded, machine, spec))
    if machine and spec is not None:
        refuse_too_little_memory(loaded, spec, machine)
    if spec is not None:
        how = "written to" if made else "from"
        say("model", f"{_name(spec)} {how} {loaded.config.model.path}")
    elif loaded.config.model.make:
        say("model", f"{loaded.config.model.make} will write {loaded.config.model.path}")
    say("algorithm", algorithm_row(loaded))
    say("plan", _plan(RunShape.of(loaded.config), loaded))


def refuse_missing_gpus(loaded: LoadedConfig, machine: Machine) -> None:
    """
    Raises:
        ConfigErrors: this machine has fewer GPUs than the config takes.
    """
    refuse(list(gpus_are_there(loaded, World(num_gpus=len(machine.gpus), spec=None))))


def refuse_nodes(loaded: LoadedConfig, fix: str) -> None:
    """
    Args:
        fix: what starts several machines, or one.

    Raises:
        ResourceError: the run would take several machines.
    """
    nodes = loaded.config.cluster.nodes
    if nodes > 1:
        raise ResourceError(
            f"cluster.nodes = {nodes}, but what starts here has this machine only",
            where=loaded.where("cluster.nodes"),
            fix=fix,
        )


def algorithm_row(loaded: LoadedConfig) -> str:
    """What a preset stands for, with the keys that were set beside it."""
    algorithm = loaded.config.algorithm
    row = {"estimator": algorithm.estimator.name, "loss": algorithm.loss.name}
    if algorithm.preset:
        row |= dict(flat(PRESETS[algorithm.preset].algorithm))
    for name, value in values(algorithm):
        if name != "preset" and loaded.origins[f"algorithm.{name}"] != "default":
            row[name.removesuffix(".name")] = str(value)
    uses_kl = algorithm.kl.coefficient > 0
    choices = ", ".join(f"{name} {value}" for name, value in row.items() if uses_kl or name[:3] != "kl.")
    return f"{algorithm.preset}: {choices}" if algorithm.preset else choices


def _spec(loaded: LoadedConfig) -> tuple[models.ModelSpec | None, list[HybridRLError]]:
    try:
        return hub.find_spec(loaded.config.model.path), []
    except ModelError as error:
        return None, [error]


def _model_errors(
    loaded: LoadedConfig, machine: Machine | None, spec: models.ModelSpec | None
) -> list[HybridRLError]:
    """What rules refuse, about the model as far as it is known, and what the trainer does."""
    wrong = check(loaded, _world(machine, spec)) + _nodes_without_ranks(loaded)
    wrong += [*separate_engines(loaded), *unshared_gpus(loaded)]
    if spec is not None:
        moe = loaded.config.actor.moe
        asked = (
            lambda: layout_of(loaded.config.actor.backend).refuse_unbuildable(spec, where="model"),
            lambda: refuse_unfit_experts(moe, spec, where="actor.moe"),
            lambda: refuse_unfit_reward_model(loaded.config),
        )
        wrong += [loaded.locate(error) for one in asked if (error := _refusal(one))]
    return wrong or (_layout_errors(loaded, spec) if spec else [])


def _nodes_without_ranks(loaded: LoadedConfig) -> list[HybridRLError]:
    """A trainer rank writes into the engines of its own node."""
    nodes, ranks = loaded.config.cluster.nodes, RunShape.of(loaded.config).trainer_ranks
    if nodes <= ranks:
        return []
    return [
        ResourceError(
            f"cluster.nodes = {nodes}, and the trainer has {ranks} ranks: every node needs one, which writes "
            "the weights of the engines beside it",
            where=loaded.where("actor.parallel", "cluster.nodes"),
            fix=f"give it {nodes} ranks, as with a larger actor.parallel.dp; or cluster.nodes={ranks}",
        )
    ]


def _layout_errors(loaded: LoadedConfig, spec: models.ModelSpec) -> list[HybridRLError]:
    """What only the layout of the shards shows, asked where no rule refuses the config."""
    errors: list[HybridRLError] = []
    for key, cut in trainer_cuts(loaded.config):
        whole = with_dp(cut, loaded.config.cluster)
        if error := _refusal(lambda whole=whole: trainer_layout(loaded.config, spec, whole)):
            errors.append(ConfigError(f"{key}: {error.what}", where=loaded.where(key), fix=error.fix))
    errors += _engine_errors(loaded, spec)
    shape = RunShape.of(loaded.config)
    if error := _refusal(lambda: reward_model_layout(loaded.config)):
        what, place = f"the reward model: {error.what}", loaded.where("reward_model.parallel", "reward_model")
        fix = error.fix if shape.reward_model else f"{error.fix}; or give it ranks with reward_model.parallel"
        errors.append(ConfigError(what, where=place, fix=fix))
    return errors


def _engine_errors(loaded: LoadedConfig, spec: models.ModelSpec) -> list[HybridRLError]:
    """What the kind of engine cannot do that the config asks of it."""
    cfg, key = loaded.config, "rollout.parallel"
    kind = kind_of(cfg.rollout.engine)
    errors = [loaded.locate(error) for error in kind.refuse(cfg, spec)]
    if error := _refusal(lambda: kind.layout(spec, cfg.rollout.parallel)):
        errors.append(ConfigError(f"{key}: {error.what}", where=loaded.where(key), fix=error.fix))
    return errors


def _is_absence(error: HybridRLError, spec: models.ModelSpec | None) -> bool:
    return isinstance(error, DataError) or (spec is None and isinstance(error, ModelError))


def _world(machine: Machine | None, spec: models.ModelSpec | None) -> World:
    if machine is None:
        return World(here=False, num_gpus=0, spec=spec)
    return World(num_gpus=len(machine.gpus), spec=spec)


def _plugin_errors(loaded: LoadedConfig) -> list[HybridRLError]:
    """What the plug-ins themselves refuse: an unknown name, an unknown option, a group too small."""
    from hybridrl.algorithms.mute import refuse_mute
    from hybridrl.controller.advantage import load_credit
    from hybridrl.rewards.plugin import load_reward

    config, reward = loaded.config, loaded.config.reward
    trials: list[Callable[[], object]] = [
        lambda: load_credit(config.algorithm),
        lambda: _try_objective(config),
        lambda: columns_elsewhere(config),
        lambda: refuse_mute(config.algorithm),
    ]
    if (make := config.model.make) is not None:
        trials.append(lambda: find_maker(make, where="model.make"))
    if ":" not in reward.name:  # code from outside is loaded in a process that can be killed
        trials.append(lambda: load_reward(reward.name, reward.options, where="reward"))
    errors = [loaded.locate(error) for trial in trials if (error := _refusal(trial))]
    return list({str(error): error for error in errors}.values())  # two trials build the same KL estimator


def _try_objective(config: Config) -> None:
    from hybridrl.algorithms import Objective
    from hybridrl.controller.advantage import refuse_unknown

    objective = Objective(config.algorithm, max_response_tokens=config.rollout.max_response_tokens)
    refuse_unknown(objective.columns - given_by("block", "ranks"), "the policy loss", "algorithm.loss")


def _refusal(trial: Callable[[], object]) -> HybridRLError | None:
    try:
        trial()
    except HybridRLError as error:
        return error
    return None


def _make_model(loaded: LoadedConfig) -> models.ModelSpec:
    model = loaded.config.model
    assert model.make is not None, "a folder that is missing without a maker was refused"
    make_model(model.make, Path(model.path), loaded.config.run.seed, where=loaded.where("model.make"))
    return models.read(model.path)


def _name(spec: models.ModelSpec) -> str:
    return f"{spec.family} ({models.count(spec) / 1e6:,.1f} M parameters)"


def _plan(shape: RunShape, loaded: LoadedConfig) -> str:
    batch, samples = loaded.config.batch, loaded.config.algorithm.samples_per_prompt
    ranks = {"actor": shape.parallel, "critic": shape.critic, "reference": shape.reference}
    ranks |= {"reward model": shape.reward_model}
    cuts = ", ".join(f"{role} {_cut(parallel)}" for role, parallel in ranks.items() if parallel)
    engines = "engine" if shape.num_engines == 1 else f"{shape.num_engines} engines"
    answers, updates = shape.trajectories_per_step, shape.optimizer_steps_per_step
    return (
        f"{batch.prompts_per_step} prompts x {samples} samples = {answers:,} trajectories/step "
        f"-> {updates} optimizer steps; {cuts}, {engines} TP{shape.engine.tp}"
    )


def _cut(parallel: TrainParallel) -> str:
    axes = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp")
    sizes = {axis.upper(): getattr(parallel, axis) for axis in axes}
    return " ".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1) or "TP1"
