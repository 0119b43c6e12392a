"""An evaluation as a table, as JSON, as a file in the folder of its run, and in the run's MLflow."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridrl.config.files import atomic_write_json
from hybridrl.observe.sinks import mlflow
from hybridrl.observe.summary import versions
from hybridrl.observe.units import duration
from hybridrl.serve.estimates import CONFIDENCE, Estimate
from hybridrl.serve.evaluation import EVALUATIONS, Answered, Evaluation, SetResult

_HEAD = ("set", "prompts", "answers", "metric", "value", f"{CONFIDENCE:.0%} interval")


def lines(found: Evaluation) -> Iterator[str]:
    """The table of an evaluation."""
    rows = [row for one in found.sets for source in one.sources for row in _rows(one, source)]
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    for row in [_HEAD, *rows]:
        cells = [row[0].ljust(widths[0]), *(_cell(i, text, widths[i]) for i, text in enumerate(row[1:], 1))]
        yield "  ".join(cells).rstrip()


def notes(found: Evaluation) -> Iterator[tuple[str, str]]:
    """Headings and lines about how the numbers of the table were made."""
    for one in found.sets:
        lost = one.metrics.get("val-aux/unjudged", 0.0)
        if lost:
            yield "warning", f"{one.name}: {lost:.0f} answers have no reward, because a judge failed"
        for source in one.sources:
            tokens = f"{source.mean_tokens:,.1f} tokens an answer"
            yield "answers", f"{_name(one, source)}: {tokens}, {_cut(source)}, {duration(one.seconds)}"
    how = "greedy" if found.temperature == 0 else f"sampled at temperature {found.temperature:g}"
    yield "solved", f"is an answer with a reward above {found.solved_above:g}; answers are {how}"


def as_dict(found: Evaluation) -> dict[str, Any]:
    return {
        "of": found.of.text,
        "kind": found.of.kind,
        "model": found.model,
        "step": found.step,
        "config": found.of.file,
        "overrides": list(found.of.overrides),
        "solved_above": found.solved_above,
        "temperature": found.temperature,
        "confidence": CONFIDENCE,
        "sets": [_set_as_dict(one) for one in found.sets],
        "versions": versions(),
    }


def keep(found: Evaluation, folder: Path) -> Path:
    """Write an evaluation of a run into the folder of the run; returns the file."""
    own = folder / EVALUATIONS
    own.mkdir(exist_ok=True)
    numbers = [int(path.stem) for path in own.glob("*.json") if path.stem.isdecimal()]
    path = own / f"{max(numbers, default=0) + 1:04d}.json"
    atomic_write_json(path, as_dict(found))
    return path


def log(found: Evaluation, folder: Path, file: Path) -> bool:
    """Add an evaluation to the MLflow run of a run folder; False: it has none."""
    metrics = {
        f"eval/{_name(one, source)}/{name}": estimate.value
        for one in found.sets
        for source in one.sources
        for name, estimate in _estimates(one, source).items()
    }
    return mlflow.add(folder, {k.replace("@", "_at_"): v for k, v in metrics.items()}, found.step, [file])


def _cut(source: Answered) -> str:
    if not source.truncated:
        return "none cut at the limit"
    share, reward = f"{source.truncated:.0%}", f"{source.truncated_reward:.3f}"
    return f"{share} cut at the limit (their mean reward is {reward})"


def _rows(one: SetResult, source: Answered) -> Iterator[Sequence[str]]:
    first = (_name(one, source), f"{source.num_prompts:,}", f"{source.num_answers:,}")
    for name, estimate in _estimates(one, source).items():
        yield (*first, name, _number(estimate.value), _interval(estimate))
        first = ("", "", "")


def _estimates(one: SetResult, source: Answered) -> Mapping[str, Estimate]:
    passes = {f"pass@{k}": estimate for k, estimate in source.passes.items()}
    return {f"mean@{one.samples}": source.mean, **passes}


def _name(one: SetResult, source: Answered) -> str:
    """The set, and its source where they differ."""
    inner = Path(one.name).stem
    return one.name if source.source in (one.name, inner, "heldout", "val") else f"{one.name}/{source.source}"


def _interval(estimate: Estimate) -> str:
    if math.isnan(estimate.low):
        return "one prompt has none"
    return f"{_number(estimate.low)} to {_number(estimate.high)}"


def _number(value: float) -> str:
    return f"{value:.3f}"


def _cell(column: int, text: str, width: int) -> str:
    return text.rjust(width) if column in (1, 2, 4) else text.ljust(width)


def _set_as_dict(one: SetResult) -> dict[str, Any]:
    return {
        "name": one.name,
        "samples": one.samples,
        "metrics": dict(one.metrics),
        "sources": [_source_as_dict(one, source) for source in one.sources],
        "examples": list(one.examples),
        "seconds": round(one.seconds, 3),
    }


def _source_as_dict(one: SetResult, source: Answered) -> dict[str, Any]:
    return {
        "source": source.source,
        "prompts": source.num_prompts,
        "answers": source.num_answers,
        "mean_tokens": source.mean_tokens,
        "truncated": source.truncated,
        "truncated_reward": _finite(source.truncated_reward),
        "estimates": {
            name: {"value": e.value, "low": _finite(e.low), "high": _finite(e.high)}
            for name, e in _estimates(one, source).items()
        },
    }


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
