"""Writes docs/metrics.md from the table of metrics, so that it cannot drift:

python -m hybridrl.observe.document > docs/metrics.md
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hybridrl.observe.names import FAMILIES, FIRST_RATIO_ERROR, LOGP_GAP, METRICS, Metric

_HEAD = """\
# Metrics

<!-- Made from the code: python -m hybridrl.observe.document > docs/metrics.md -->

Every policy update writes one line to `metrics.jsonl` in the run folder, and the same names to the
[sinks of `observe.sinks`](observing.md):

    {"kind": "step", "step": 20, "time": 1795975809.2, "wall_s": 25.1, "critic/score/mean": 0.31, ...}

`time` is Unix time, `wall_s` the seconds of training so far over all sessions of the run. An
evaluation on the held-out prompts is a line of its own, with `"kind": "evaluation"`. Names are
those of verl wherever verl has the metric; `@` is written `_at_`, because MLflow refuses it. A
metric is absent from a line where its part is not used: a run without a critic has no
`critic/vf_loss`.

A policy update may have several optimizer steps. The column "over steps" says how their values
become one: the mean unless it says max, min or last. A metric of your own loss or estimator is
combined by the last word of its name: `..._max` by the maximum, `..._min` by the minimum, any
other by the mean.

The column "healthy" has what the code itself guarantees, checks or stops at, and nothing else.
Where it is empty, no value is right for every run: compare with the run's own past.
"""


@dataclass(frozen=True, slots=True)
class _Part:
    title: str
    prefixes: tuple[str, ...]
    about: str


_PARTS = (
    _Part(
        "Rewards and advantages",
        ("critic/score", "critic/rewards", "critic/advantages", "critic/returns", "reward_model/"),
        "They begin with `critic/` as in verl, with or without a critic.",
    ),
    _Part("Rollout", ("rollout/",), "What was sampled, and how much of it teaches something."),
    _Part(
        "Episodes",
        ("num_turns/", "episode/"),
        "Only with an environment; `tool/` and `environment/` below are theirs too.",
    ),
    _Part(
        "Goodput",
        ("goodput/",),
        "The time of the engines by what it was for; the shares of a step sum to 1. "
        "[asynchronous.md](asynchronous.md#goodput) explains them.",
    ),
    _Part("Policy", ("actor/",), "The update of the policy, over trained tokens: those that it generated."),
    _Part(
        "Agreement of trainer and engine",
        ("training/rollout_", FIRST_RATIO_ERROR),
        "Both compute log-probabilities of the same tokens, by different kernels; this is their difference.",
    ),
    _Part("Critic", ("critic/",), "Present with an estimator that needs values, as `gae` does."),
    _Part("Process model", ("process/",), "Present with the estimator `prime`."),
    _Part("Mixtures of experts", ("moe/",), "Present for models with experts."),
    _Part(
        "Lengths",
        ("response_length", "response/", "prompt_length", "global_seqlen"),
        "Token counts of prompts and answers.",
    ),
    _Part("Weight swap", ("sync/",), "The new weights on their way from the trainer into the engines."),
    _Part(
        "Speed and memory",
        ("perf/", "timing_s/", "timing_per_token_ms/"),
        "`timing_s/step` is the whole step, its phases follow. [tuning.md](tuning.md) says what to turn.",
    ),
    _Part("Place in the run", ("training/",), ""),
    _Part(
        "Training on examples",
        ("train/", "val/"),
        "Of [`hybridrl sft` and `rm`](sft.md): `train/` of an update, `val/` of the held-out examples.",
    ),
)
"""Every metric is in the first part that has a prefix of its name."""

HEALTHY: Mapping[str, str] = {
    "critic/advantages/mean": "0 where the estimator centres: guard `centred` stops the run otherwise",
    "critic/vf_explained_var": "at most 1; 0 or less says that the critic is no better than a constant",
    "rollout/zero_std": "below 1; at 1 no group has a learning signal",
    "rollout/kept_share": "above 0; every flat group costs the generation of another one",
    "actor/ratio_max_abs_err": "grows with each optimizer step of an update; the first one's has its own row",
    "actor/grad_norm": "finite; inf or NaN ends the run with the parameters unchanged",
    "actor/loss": "finite; inf or NaN ends the run with the parameters unchanged",
    "actor/overflow": "0; in fp16 a few while the loss scale settles",
    FIRST_RATIO_ERROR: "exactly 0: guard `first_ratio` stops the run otherwise",
    LOGP_GAP: "rounding of the precision: 4e-6 in fp32 on the quickstart, 6e-5 on 30 layers",
    "training/rollout_actor_probs_pearson_corr": "close to 1",
    "moe/load_max": "at least 1; 1 is a perfect balance",
    "moe/engine_differs": "near 0; `actor.moe.router_replay: rollout` trains with the engine's choice",
    "response/aborted_ratio": "0",
    "response_length/clip_ratio": "near 0; a cut answer rarely has its reward",
    "prompt_length/clip_ratio": "any; a longer prompt is refused before the run",
    "sync/checksum_ok": "1",
    "sync/in_place": "1; 0 is the slower path, said once as a warning",
    "sync/replays": "0",
    "perf/overhead_share": "near 0",
    "perf/dp_idle_share": "near 0",
    "train/grad_norm": "finite; inf or NaN ends the run with the parameters unchanged",
    "train/loss": "finite; inf or NaN ends the run with the parameters unchanged",
}
"""Ranges that follow from a guard, an error, a definition, or a measurement that the documentation names."""


def render() -> str:
    """The whole page."""
    parts = [_HEAD, *(_part(part) for part in _PARTS), _families()]
    return "\n".join(text.rstrip() + "\n" for text in parts)


def part_of(name: str) -> str | None:
    """The title of the table that has a metric; None: no table has it."""
    return next((part.title for part in _PARTS if name.startswith(part.prefixes)), None)


def _part(part: _Part) -> str:
    rows = [_row(name, METRICS[name]) for name in METRICS if part_of(name) == part.title]
    head = [f"## {part.title}\n", *([f"{part.about}\n"] if part.about else [])]
    return "\n".join([*head, *_table(("name", "unit", "meaning", "over steps", "healthy"), rows)])


def _row(name: str, metric: Metric) -> tuple[str, ...]:
    over = "" if metric.over == "mean" else metric.over
    return f"`{name}`", metric.unit, metric.meaning, over, HEALTHY.get(name, "")


def _families() -> str:
    rows = [(f"`{prefix}...`", metric.unit, metric.meaning) for prefix, metric in FAMILIES.items()]
    about = "Further names are made at run time; they begin with one of these.\n"
    return "\n".join(
        ["## Names made at run time\n", about, *_table(("begins with", "unit", "meaning"), rows)]
    )


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


if __name__ == "__main__":
    print(render(), end="")
