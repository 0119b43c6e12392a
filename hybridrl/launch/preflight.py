"""Checks a config before the first process starts, and says what will run."""

from collections.abc import Callable
from pathlib import Path

from hybridrl.algorithms.catalog import flat
from hybridrl.config.load import LoadedConfig, values
from hybridrl.config.presets import PRESETS
from hybridrl.config.run_shape import RunShape
from hybridrl.config.training import TrainParallel
from hybridrl.errors import refuse
from hybridrl.hosts.machine import Machine
from hybridrl.launch.run_folder_check import refuse_unfit_folder
from hybridrl.launch.shape import Resume
from hybridrl.launch.verdict import Scope, Verdict, verdict
from hybridrl.models import spec as models
from hybridrl.models.make import make_model as write_model
from hybridrl.observe.progress import progress
from hybridrl.wording import counted

Say = Callable[[str, str], None]
"""Prints a line, given its heading and its text."""


def preflight(
    loaded: LoadedConfig,
    scope: Scope,
    machine: Machine,
    say: Say,
    *,
    make_model: bool = False,
    resume: Resume | None = None,
) -> None:
    """Refuse what the verdict refuses, make the model if it has to be made, and say what will run.

    Args:
        machine: this one.
        make_model: write model.path with model.make when it is absent.
        resume: how the run would take its folder, which is checked; None: it is not on this machine.

    Raises:
        ConfigErrors: everything that is wrong.
        RunFolderError: the folder cannot be taken.
    """
    if scope.devices == "here":
        say("doctor", machine.describe())
    found = verdict(loaded, scope, machine)
    refuse(found.errors)
    if resume is not None:
        refuse_unfit_folder(loaded, resume)
    say_absent(found, say)
    model, is_there = loaded.config.model, Path(loaded.config.model.path).is_dir()
    if model.make is not None and not is_there and make_model:
        with progress("model", f"{model.make} writes {model.path}"):
            write_model(
                model.make, Path(model.path), loaded.config.run.seed, where=loaded.where("model.make")
            )
    if model.make is not None and not is_there and not make_model:
        say("model", f"{model.make} will write {model.path}")
    elif found.model is not None:
        how = "from" if is_there or model.make is None else "written to"
        say("model", f"{_name(found.model)} {how} {model.path}")
    say("algorithm", algorithm_row(loaded))
    say("plan", _plan(RunShape.of(found.loaded.config), found.loaded))


def say_absent(found: Verdict, say: Say) -> None:
    """Name the files that are not on this machine and that the scope does not refuse."""
    for error in found.absent:
        say("not here", f"{error.what}  ({error.where})")


def algorithm_row(loaded: LoadedConfig) -> str:
    """The choices of the preset, with the keys that the config sets itself."""
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


def _name(spec: models.ModelSpec) -> str:
    return f"{spec.family} ({models.count(spec) / 1e6:,.1f} M parameters)"


def _plan(shape: RunShape, loaded: LoadedConfig) -> str:
    batch, samples = loaded.config.batch, loaded.config.algorithm.samples_per_prompt
    ranks = {"actor": shape.parallel, "critic": shape.critic, "reference": shape.reference}
    ranks |= {"reward model": shape.reward_model}
    shardings = ", ".join(f"{role} {_sharding(parallel)}" for role, parallel in ranks.items() if parallel)
    engines = "engine" if shape.num_engines == 1 else counted(shape.num_engines, "engine")
    answers, updates = shape.trajectories_per_step, shape.optimizer_steps_per_step
    return (
        f"{counted(batch.prompts_per_step, 'prompt')} x {counted(samples, 'sample')} = "
        f"{counted(answers, 'trajectory', 'trajectories', form=',')}/step -> "
        f"{counted(updates, 'optimizer step')}; {shardings}, {engines} TP{shape.engine.tp}"
    )


def _sharding(parallel: TrainParallel) -> str:
    axes = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp")
    sizes = {axis.upper(): getattr(parallel, axis) for axis in axes}
    return " ".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1) or "TP1"
