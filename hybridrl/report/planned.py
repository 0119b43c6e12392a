"""Plan against actual: what the estimate of the run's config says, and what was measured."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hybridrl.config.load import load_as
from hybridrl.config.schema import Config
from hybridrl.errors import HybridRLError
from hybridrl.estimate import memory
from hybridrl.estimate.gpus import GPUS
from hybridrl.estimate.setting import Setting
from hybridrl.estimate.time import StepTime, step_time
from hybridrl.models import spec
from hybridrl.report.html import section, table
from hybridrl.report.run_data import CONFIG_FILE, RunData
from hybridrl.report.text import escaped

_GIB, _GB = 1024**3, 1e9

_PHASES = {
    "generate": ("timing_s/gen",),
    "logprobs": ("timing_s/old_log_prob",),
    "train": ("timing_s/update_actor",),
    "swap": ("sync/time_s",),
    "total": ("timing_s/step",),
}
"""Phase of the estimate -> spans of a run."""


def plan_against_actual(run: RunData) -> str:
    """A table of the estimate beside the measurements; says why where the estimate cannot be made."""
    if "timing_s/gen" not in run.steps:
        return ""
    try:
        rows = list(_rows(run, _setting(run)))
    except HybridRLError as error:
        rows, why = [], f"<p>The plan of this config cannot be made here: {escaped(error)}</p>"
    else:
        why = ""
    about = (
        "The plan is made anew from the config, with the answer length that was measured. "
        "Memory in use counts everything on the machine."
    )
    head = ("what", "plan", "actual", "actual / plan")
    return section("plan", "Plan against actual", table("Plan and run", head, rows), why, about=about)


def _setting(run: RunData) -> Setting:
    cfg: Any = load_as(Config, run.folder / CONFIG_FILE).config
    model = spec.read(_model_folder(run, cfg))
    lengths = run.steps.get("response_length/mean")
    gpu = GPUS[cfg.cluster.gpu] if cfg.cluster.gpu else None
    return Setting.of(cfg, model, gpu, mean_response=float(lengths.value_S.mean()) if lengths else None)


def _model_folder(run: RunData, cfg: Config) -> Path:
    """The folder of the model, or of the run's export, which has the same sizes."""
    own = Path(cfg.model.path)
    return own if own.is_dir() else run.folder / "export"


def _rows(run: RunData, setting: Setting) -> Iterator[tuple[str, str, str, str]]:
    if setting.gpu is None:
        if used := run.steps.get("perf/cpu_memory_used_gb"):
            yield _compared(
                "memory of the machine, GB", memory.on_cpu(setting).peak / _GB, _gb(used.value_S.max())
            )
        return
    if used := run.steps.get("perf/max_memory_allocated_gb"):
        peak = max(memory.training(setting, stage).peak for stage in range(setting.train.pp))
        yield _compared("memory of a GPU in training, GB", peak / _GB, _gb(used.value_S.max()))
    times: StepTime = step_time(setting)
    for phase, spans in _PHASES.items():
        found = [float(run.steps[name].value_S.mean()) for name in spans if name in run.steps]
        if found:
            yield _compared(f"{phase}, seconds", getattr(times, phase), sum(found))


def _gb(gib: float) -> float:
    return float(gib) * _GIB / _GB


def _compared(what: str, plan: float, actual: float) -> tuple[str, str, str, str]:
    return what, f"{plan:.3g}", f"{actual:.3g}", f"{actual / plan:.2f}" if plan else ""
