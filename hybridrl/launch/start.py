"""What `hybridrl launch` does, by place: train here or on a running Ray, or hand the run to Slurm or Ray."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hybridrl.config.load import LoadedConfig
from hybridrl.config.run_folder import path_of
from hybridrl.errors import ConfigError
from hybridrl.faults import Fault
from hybridrl.hosts.machine import Machine
from hybridrl.launch import data_sets, model_folders, stored
from hybridrl.launch.inject import faults_of, words_of
from hybridrl.launch.preflight import Say, preflight
from hybridrl.launch.prepare import try_data
from hybridrl.launch.ray_address import address_of, dashboard_of
from hybridrl.launch.restarts import Restarts
from hybridrl.launch.run_folder_check import is_finished
from hybridrl.launch.shape import Resume, RunFiles, with_gpus
from hybridrl.launch.stop import StopRequest
from hybridrl.launch.verdict import SCOPES, Scope, refuse_missing_gpus
from hybridrl.observe.terminal import Terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of a launch."""

    on: Literal["local", "ray", "slurm"]
    resume: Resume
    dry_run: bool
    submit: bool
    """Hand the run to Ray's job server instead of driving it from here."""

    wait: bool
    """Return when the Slurm job is over."""

    inject: Sequence[str] = ()
    """Faults that the run is to suffer, as faults.parse reads them."""


def launch(loaded: LoadedConfig, overrides: Sequence[str], request: Request, say: Say) -> int:
    """Check a config and run it where the request says.

    Args:
        overrides: those with which the config was loaded.

    Returns:
        Exit code: 0, or STOPPED if the run stopped early and can be resumed; with --wait, that of the job.

    Raises:
        HybridRLError: its `where` is the line of the config that it is about.
    """
    _refuse_idle_options(request)
    with loaded.located():
        _refuse_bad_addresses(loaded, request)
        faults = _faults(loaded, request)
        if request.on == "slurm":
            from hybridrl.launch import slurm

            slurm.refuse_owned(
                RunFiles(path_of(loaded.config))
            )  # before its process is found to hold the folder
        if not (request.dry_run or request.submit or request.on == "slurm"):
            stored.fetch(loaded, request.resume, say)
        loaded = checked(loaded, request, say)
        words = [*overrides, *words_of(request.inject)]
        if faults:
            say("inject", ", ".join(map(str, faults)))
        if request.resume == "if_possible" and is_finished(loaded):
            say("done", f"{path_of(loaded.config)} has done all of its steps")
            return 0
        if request.on == "slurm" or request.submit:
            _try_data_of_job(loaded, request, say)
        if request.on == "slurm":
            from hybridrl.launch import slurm

            resumes, dry_run, wait = _resume(loaded, request) != "never", request.dry_run, request.wait
            return slurm.launch(loaded, words, say, resume=resumes, dry_run=dry_run, wait=wait)
        if request.submit:
            from hybridrl.launch import ray_job

            ray_job.launch(loaded, words, say, resume=request.resume, dry_run=request.dry_run)
            return 0
        if request.dry_run:
            try_data(loaded, say)
            say("dry run", f"nothing started; the run would live in {path_of(loaded.config)}")
            return 0
        # Imported here, like the other two, so that a launch waits only for what it needs.
        from hybridrl.launch.local import RLRun

        terminal = Terminal()
        own = loaded.config.run
        with StopRequest(terminal.warn, saves_on_interrupt=own.save_on_interrupt) as stop:
            files, resume = RunFiles(path_of(loaded.config)), _resume(loaded, request)
            for start in Restarts(own.max_restarts, files, terminal.warn, resume=resume):
                left = start.left_of(faults)
                with (
                    start,
                    RLRun(
                        loaded,
                        terminal,
                        stop,
                        on=request.on,
                        resume=start.resume,
                        faults=left,
                        restarts=start,
                    ) as run,
                ):
                    asyncio.run(run.play())
                    run.finish()
        return stop.exit_code


def checked(loaded: LoadedConfig, request: Request, say: Say) -> LoadedConfig:
    """The config, with the GPUs of this machine if it runs here, after every check that needs no process."""
    dry_run, scope, machine = request.dry_run, _scope(request), Machine.here()
    here = scope.devices == "here"
    loaded = with_gpus(loaded, machine) if here else loaded
    downloads = not dry_run and not request.submit and model_folders.absent(loaded)
    if downloads:
        if here:
            refuse_missing_gpus(loaded, machine)
        model_folders.fetch_specs(loaded)
    is_sent = request.submit and loaded.config.cluster.ray.working_dir is not None
    resume = None if is_sent else _resume(loaded, request)
    preflight(loaded, scope, machine, say, make_model=here and not dry_run, resume=resume)
    if downloads:
        model_folders.fetch(loaded, say)
    if not dry_run and not request.submit:
        data_sets.fetch(loaded, say)
    return loaded


def _faults(loaded: LoadedConfig, request: Request) -> tuple[Fault, ...]:
    here = _scope(request).devices == "here"
    return faults_of(request.inject, (with_gpus(loaded, Machine.here()) if here else loaded).config)


def _try_data_of_job(loaded: LoadedConfig, request: Request, say: Say) -> None:
    """Look at data and reward before a job waits in a queue, if it reads the files that are here."""
    cluster = loaded.config.cluster
    elsewhere = cluster.ray.working_dir if request.submit else cluster.slurm.container
    if elsewhere is None:
        try_data(loaded, say)
    else:
        place = "uploaded folder" if request.submit else "container"
        say("data", f"data and reward were not looked at: the job reads them in its {place}")


def _resume(loaded: LoadedConfig, request: Request) -> Resume:
    begun = (path_of(loaded.config) / "resolved.yaml").exists()
    return "never" if request.resume == "if_possible" and not begun else request.resume


def _scope(request: Request) -> Scope:
    if request.on == "slurm" or request.submit:
        return SCOPES[f"launch --on slurm{' --dry-run' if request.dry_run else ''}"]
    return SCOPES["launch --on ray" if request.on == "ray" else "launch"]


def _refuse_bad_addresses(loaded: LoadedConfig, request: Request) -> None:
    if request.submit:
        dashboard_of(loaded.config.cluster.ray)
    elif request.on == "ray":
        address_of(loaded.config.cluster.ray)


def _refuse_idle_options(request: Request) -> None:
    if request.wait and request.on != "slurm":
        raise ConfigError("--wait waits for a Slurm job", fix="--on slurm")
    if request.submit and request.on != "ray":
        raise ConfigError("--submit hands a run to Ray's job server", fix="--on ray")
