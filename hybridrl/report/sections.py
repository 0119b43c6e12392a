"""The sections of a report about the whole run: what came out, curves, phases, engine time, swap, config."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from hybridrl.errors import UserError
from hybridrl.observe.document import part_of
from hybridrl.observe.names import FIRST_RATIO_ERROR, LOGP_GAP, describe
from hybridrl.observe.units import duration, size
from hybridrl.report import charts
from hybridrl.report.band import band_of
from hybridrl.report.health import BANDS
from hybridrl.report.html import details, facts, section, table
from hybridrl.report.run_data import RunData, Setting
from hybridrl.report.series import Series, number, total
from hybridrl.report.text import escaped
from hybridrl.wording import counted

KEY_METRICS = (
    "critic/score/mean",
    "train/loss",
    "train/accuracy",
    "actor/entropy",
    "actor/grad_norm",
    "train/grad_norm",
    "response_length/mean",
    "response_length/clip_ratio",
    "rollout/zero_std",
    "actor/pg_clipfrac",
    "actor/ppo_kl",
    "actor/kl_loss",
    "training/rollout_probs_diff_mean",
    LOGP_GAP,
    FIRST_RATIO_ERROR,
    "critic/vf_explained_var",
    "num_turns/mean",
    "rollout/lag/mean",
    "perf/throughput",
)
"""Metrics that are shown first, as far as the run has them."""

PHASES = (
    *("wait_for_batch", "gen", "reward", "adv", "old_log_prob", "ref", "values", "update_critic"),
    *("update_actor", "update_weights", "save_checkpoint", "inspect"),
)
"""Phases in the order of a step. wait_for_batch holds gen and reward in a run that does not overlap them."""

CAUSES = {
    "with_gradient": 2,
    "no_gradient": 1,
    "stale": 6,
    "flat": 4,
    "aborted": 3,
    "in_flight": 5,
    "recomputed": 7,
    "paused": 8,
    "rewards": 0,
    "idle": 9,
}
"""Causes of engine time, with their colours."""


def overview(run: RunData) -> str:
    """What came out of the run, and how it ended."""
    return section("overview", "Overview", facts(_outcome(run)), facts(_versions(run.summary)))


def curves(run: RunData) -> str:
    shown, expected = [name for name in KEY_METRICS if name in run.steps], expected_curves(run)
    figures = "".join(
        _figure(name, run.steps[name], more=_evaluated(run, name), expected=expected.get(name))
        for name in shown
    )
    about = (
        "Every point is the mean over neighbouring steps; the shadow is the range of their values. "
        f"A green band is where a healthy run lies{_EXPECTED if expected else ''}. "
        "Arrow keys read a curve out."
    )
    return section("curves", "Curves", f'<div class="grid">{figures}</div>' if figures else "", about=about)


_EXPECTED = ", and between grey limits lie the curves of other seeds of this config"


def expected_curves(run: RunData) -> dict[str, charts.Expected]:
    """The limits of the band that ships with the package for the run's config, by metric; {} if none does."""
    try:
        found = band_of(run)
    except UserError:
        return {}
    return {
        name: charts.Expected(*(np.asarray(values, float) for values in (one.step_P, one.low_P, one.high_P)))
        for name, one in found.curves.items()
    }


def phases(run: RunData) -> str:
    """The seconds of each phase over the steps, and of the mean step."""
    step_s = run.steps.get("timing_s/step")
    if step_s is None:
        return ""
    found = {name: run.steps[f"timing_s/{name}"] for name in PHASES if f"timing_s/{name}" in run.steps}
    whole = float(step_s.value_S.sum())
    spent = run.summary.get("seconds_by_phase") or {}
    rows = [
        (name, duration(seconds), f"{seconds / whole:.1%}")
        for name, seconds in sorted(spent.items(), key=lambda entry: -entry[1])
    ]
    lanes = f'<div class="lanes">{charts.lanes(found, step_s)}</div>'
    totals = table("Seconds of the whole run", ("phase", "time", "of all steps"), rows)
    about = "All lanes have the scale of the whole step. Phases that run at the same time each count in full."
    return section("phases", "Timeline of the phases", lanes, details("Totals", totals), about=about)


def engine_time(run: RunData) -> str:
    """The time of the engines by its cause."""
    found = {c: run.steps[f"goodput/{c}"] for c in CAUSES if f"goodput/{c}" in run.steps}
    found = {cause: series for cause, series in found.items() if series.value_S.any()}
    length = {len(series) for series in found.values()}
    if not found or len(length) > 1:
        return ""
    shares = run.summary.get("goodput") or {}
    rows = [
        (cause.replace("_", " "), f"{shares.get(cause, series.value_S.mean()):.1%}", _tokens(run, cause))
        for cause, series in found.items()
    ]
    named = {cause.replace("_", " "): series for cause, series in found.items()}
    colours = {cause.replace("_", " "): colour for cause, colour in CAUSES.items()}
    return section(
        "engines",
        "Engine time by cause",
        _legend(list(named), colours),
        charts.stacked("Engine time by cause", named, colours),
        table("Engine time", ("cause", "share of the time", "tokens"), rows),
        about="Only “with gradient” teaches the policy something; the shares of a step sum to 1.",
    )


def swap(run: RunData) -> str:
    """Weight swaps against what the memory of this machine could do."""
    seconds, written = run.steps.get("sync/time_s"), run.steps.get("sync/written_bytes")
    if seconds is None or written is None:
        return ""
    each_s, each_bytes = float(seconds.value_S.mean()), float(written.value_S.mean())
    speed = each_bytes / each_s / 1e9 if each_s else 0.0
    checked = run.steps.get("sync/checksum_ok")
    pairs = [
        ("swaps", f"{len(seconds):,}"),
        ("time of one", duration(each_s)),
        ("written by one", f"{size(each_bytes)}, {size(_mean(run, 'sync/sent_bytes'))} between ranks"),
        ("bandwidth", f"{number(speed)} GB/s"),
        *_bound(run.summary, each_bytes, each_s, speed),
        *([] if checked is None else [("checksums", "all equal" if checked.value_S.all() else "DIFFER")]),
        ("repeated writes", f"{total(run.steps, 'sync/replays'):,.0f}"),
    ]
    figure = _figure("sync/time_s", seconds)
    return section("swap", "Weight swap", facts(pairs), f'<div class="grid">{figure}</div>')


def all_metrics(run: RunData) -> str:
    """Every metric of the run, by topic."""
    topics: dict[str, list[str]] = {}
    for name, series in run.steps.items():
        topics.setdefault(part_of(name) or "Others", []).append(_figure(name, series))
    for name, series in run.evaluations.items():
        topics.setdefault("Evaluations", []).append(_figure(name, series))
    shown = [details(topic, f'<div class="grid">{"".join(found)}</div>') for topic, found in topics.items()]
    return section("metrics", "All metrics", *shown)


def config(run: RunData) -> str:
    """Every key with where its value comes from; those that the user chose first."""
    head = ("key", "value", "origin")
    chosen = [one for one in run.settings if not one.is_default]
    rest = [one for one in run.settings if one.is_default]
    return section(
        "config",
        "Config",
        table("Values that were chosen", head, map(_config_row, chosen), numbers_from=9),
        details(f"{len(rest)} defaults", table("Defaults", head, map(_config_row, rest), numbers_from=9))
        if rest
        else "",
    )


def _outcome(run: RunData) -> Iterator[tuple[str, str]]:
    summary, heldout = run.summary, run.heldout
    steps, wanted = summary.get("steps", 0), run.setting("run.steps")
    yield "state", _state(run)
    yield "steps", f"{steps:,} of {wanted}" if wanted else f"{steps:,}"
    if heldout is not None:
        yield "held-out reward", f"{heldout.value_S[0]:.3f} → {heldout.last:.3f}"
    elif summary.get("heldout_after") is not None:
        yield "held-out loss", f"{summary['heldout_before']:.4f} → {summary['heldout_after']:.4f}"
    if "critic/score/mean" in run.steps:
        score = run.steps["critic/score/mean"]
        yield "training reward", f"{score.value_S[0]:.3f} → {score.last:.3f}"
    yield "training time", duration(summary.get("train_wall_s") or 0.0)
    if tokens := summary.get("tokens"):
        yield "tokens", f"{tokens:,}"
    if (gap := summary.get("logprob_max_abs_diff")) is not None:
        yield "trainer and engine", f"agree to {gap:.1e} nats"
    if summary.get("seed") is not None:
        yield "seed", str(summary["seed"])
    if broken := summary.get("non_finite_metrics"):
        yield "metrics that are no number", str(broken)


def _state(run: RunData) -> str:
    if (signal := run.summary.get("stopped_by")) is not None:
        return f"stopped by {signal}"
    end = (run.doing or {}).get("end")
    if end is None:
        return "no end is recorded: it goes on, or was killed"
    return "finished" if end == "finished" else f"ended: {end}"


def _versions(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(text)) for name, text in (summary.get("versions") or {}).items()]


def _figure(
    name: str, series: Series, *, more: Series | None = None, expected: charts.Expected | None = None
) -> str:
    metric, band = describe(name), BANDS.get(name)
    unit = f" <small>{escaped(metric.unit)}</small>" if metric and metric.unit not in ("", "1") else ""
    meaning = f"<p>{escaped(metric.meaning)}</p>" if metric else ""
    value = f'<output class="value">{number(series.last)}</output>'
    picture = charts.curve(name, series, band=band, more=more, expected=expected)
    return (
        f"<figure><figcaption><b>{escaped(name)}</b>{unit}{value}</figcaption>"
        f"{picture}{meaning}{_judged(name, series)}</figure>"
    )


def _judged(name: str, series: Series) -> str:
    """What the health band of a metric is, and how much of the run lies outside."""
    band = BANDS.get(name)
    if band is None:
        return ""
    outside = band.share_outside(series.value_S)
    told = f"{outside:.0%} of the steps outside" if outside else "all steps inside"
    mark = "bad" if outside > 0.1 else "good"
    return f'<p class="{mark}">{escaped(band.text)}; {told}. <small>{escaped(band.source)}</small></p>'


def _evaluated(run: RunData, name: str) -> Series | None:
    if name == "critic/score/mean":
        return run.heldout
    return run.evaluations.get(name.replace("train/", "val/", 1)) if name.startswith("train/") else None


def _tokens(run: RunData, cause: str) -> str:
    name = f"rollout/tokens/{cause}"
    return f"{total(run.steps, name):,.0f}" if name in run.steps and cause != "in_flight" else ""


def _legend(names: list[str], colours: Mapping[str, int]) -> str:
    shown = "".join(f'<li><i class="c{colours[name]}"></i>{escaped(name)}</li>' for name in names)
    return f'<ul class="legend">{shown}</ul>'


def _bound(
    summary: Mapping[str, Any], each_bytes: float, each_s: float, speed: float
) -> Iterator[tuple[str, str]]:
    copies = (summary.get("machine") or {}).get("copy_gb_s")
    if copies and each_s:
        least_s = each_bytes / copies / 1e9
        yield "bound", f"{number(copies)} GB/s, what one core of this machine copies"
        yield "against the bound", f"{duration(least_s)} of {duration(each_s)}: {speed / copies:.1%}"


def _mean(run: RunData, name: str) -> float:
    return float(run.steps[name].value_S.mean()) if name in run.steps else 0.0


def _config_row(setting: Setting) -> tuple[str, str, str]:
    return setting.key, setting.value, setting.origin


def title_of(run: RunData) -> str:
    steps = counted(run.summary.get("steps", 0), "step")
    return f"{run.name}, {steps}"
