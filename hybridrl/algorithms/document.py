"""Writes docs/algorithms.md from the code, so that it cannot drift: python -m hybridrl.algorithms.document >
docs/algorithms.md"""

from collections.abc import Iterator

from hybridrl.algorithms.catalog import CONFIG_KEYS, TITLES, Entry, entries, flat, needs_of
from hybridrl.algorithms.guards import GUARDS
from hybridrl.algorithms.settings import SETTINGS
from hybridrl.columns import COLUMNS
from hybridrl.config.compatibility import COMPATIBILITY
from hybridrl.config.frameworks.absent import ABSENT
from hybridrl.config.presets import PRESETS

ESTIMATOR_EXAMPLE = '''\
# my_lab/rank_advantage.py
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hybridrl.algorithms.base import register_estimator


@register_estimator("rank_advantage")
@dataclass(frozen=True, kw_only=True)
class RankAdvantage:
    """Centred rank of each reward inside its group, in [-scale, scale]."""

    scale: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, reward_N: Tensor, group_N: Tensor) -> Tensor:
        if not torch.isfinite(reward_N).all():
            raise ValueError("a reward is not finite")
        peers_NN = group_N[:, None] == group_N
        above_N = (peers_NN & (reward_N[:, None] > reward_N)).sum(1)
        below_N = (peers_NN & (reward_N[:, None] < reward_N)).sum(1)
        return self.scale * (above_N - below_N).to(reward_N.dtype) / (peers_NN.sum(1) - 1).clamp(min=1)
'''

LOSS_EXAMPLE = '''\
# my_lab/hinge_loss.py
from typing import ClassVar

from hybridrl.algorithms.base import TokenLoss, register_policy_loss


@register_policy_loss("hinge_loss")
class HingeLoss:
    """The policy gradient of a token ends once its log ratio has moved by 0.2 in its direction."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})

    def __call__(self, logp_T, advantage_T, tokens, old_logp_T):
        moved_T = (logp_T - old_logp_T) * advantage_T.sign()
        stopped_T = (moved_T > 0.2).to(logp_T.dtype)
        return TokenLoss(-advantage_T.abs() * moved_T.clamp(max=0.2), {"actor/hinge_stopped": stopped_T})
'''

_HEAD = """\
# Algorithms

<!-- Made from the code: python -m hybridrl.algorithms.document > docs/algorithms.md -->

An algorithm is an advantage estimator, a policy loss and an aggregation mode, each one file of tensor code
whose name is its name in a config. `preset` sets all of them; keys that the config sets itself win.

    algorithm:
      preset: dapo
      loss: {name: ppo_clip, clip_high: 0.24}

Notation: s_i reward of trajectory i, g its group (the answers to one prompt), A advantage,
r = exp(logp - old_logp), sg[.] no gradient, x = logp - ref_logp. Means and sums over tokens are over
*trained* tokens: those that the policy generated.

## What we decided once

- **Denominators** count the whole minibatch and are reduced once: no split over ranks or microbatches
  changes a loss.
- **Standard deviations** of groups use n - 1; eps is added outside the root. Whitening uses n - 1 and adds
  eps under the root, over all trained tokens of the batch, with sums in float64.
- **A flat group** (all rewards equal) gets advantage exactly 0 from every group-relative estimator, in
  float32 too.
- **A group of one** gets 0 and is counted; `samples_per_prompt: 1` with a group-relative estimator is refused
  before the run. Other frameworks train such an answer on its raw reward.
- **A reward that is not finite** is refused.
- **An algorithm that needs a column which nothing computes** is marked in these tables and refused by every
  command; once the table of columns has a part of a run that gives the column, the mark is gone.
- **An algorithm without a learning signal**, whatever the rewards (every advantage 0, or no gradient of the
  policy loss, on batches made for the trial), is refused before the run; so is `gdpo` with a reward of fewer
  than two parts.
- **Log ratios** are clamped to +-20 before the exponential.
- **What depends on the whole batch** (quantiles, covariances, random choices) is computed once before its
  first optimizer step, from the policy before the update, by threshold and never by position.
- **The first ratio** of a batch is exactly 1 (`training/first_ratio_max_abs_err`), unless `bypass` is
  used.
"""

_PLUG_IN = """\
## Your own

An estimator is a class with `needs` and a call; its options are its fields. This file is complete:

```python
{estimator}```

    algorithm: {{estimator: {{name: "my_lab.rank_advantage:RankAdvantage", scale: 0.5}}}}

    $ hybridrl algo check my_lab.rank_advantage:RankAdvantage

A policy loss gives one loss per token; masking, aggregation, corrections and KL are done by the objective:

```python
{loss}```

    algorithm: {{loss: "my_lab.hinge_loss:HingeLoss"}}

    $ hybridrl algo check my_lab.hinge_loss:HingeLoss

`needs` may be a property, where the columns depend on options. In a file of the project it is then one
expression over them: `hybridrl plan` reads it without torch. A class from outside is imported and
asked, and so is a file that takes more to read than its own options.
`needs` may name the columns below. With columns per trajectory only, an estimator runs on the controller over
the whole batch; with any other it runs on every data-parallel rank and is called with `tokens` and
`reduce` as well (`hybridrl/algorithms/base.py`). Code that cannot run (it does not import, does not take its
columns, returns something else) is refused before the run; what it raises in a run, in whichever process,
ends the command with exit code 2 and names the config key, the file and the line. A `ValueError` says that
data are not what it takes. To add one to the project, put the file into `hybridrl/algorithms/estimators/`
under its name and its oracle into `tests/unit/algorithms/`; no list has to be edited.

A column of your own takes one declaration, in the module that makes it or needs it, and code that puts it
into token blocks (`TokenBlock.columns`). It then arrives under its name, like those below:

```python
declare("hint", ColumnSpec("token", "float32", "block", "how much of the token was given away", outside=0))
```

A column per turn arrives as one value per token, that of its turn; a column per prompt as a list with the
array of each trajectory's prompt, which its samples share.
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD, *(_table(kind) for kind in TITLES), _settings(), _presets(), _frameworks(), _guards()]
    parts += [_PLUG_IN.format(estimator=ESTIMATOR_EXAMPLE, loss=LOSS_EXAMPLE), _columns()]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def _table(kind: str) -> str:
    key = f"Config key: `{CONFIG_KEYS[kind]}`.\n\n" if kind in CONFIG_KEYS else ""
    lines = [
        f"## {TITLES[kind]}\n",
        key + "| name | formula | options | needs | when | source |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_row(entry) for entry in entries(kind)]
    return "\n".join(lines) + "\n"


def _row(entry: Entry) -> str:
    options = ", ".join(o.name if o.default is None else f"{o.name} = {o.default}" for o in entry.options)
    formula = f"{entry.title} `{entry.formula}`"
    cells = [f"**{entry.name}**", formula, options, entry.needs, entry.use, entry.source]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _settings() -> str:
    lines = [
        "## Selection and coefficients\n",
        "| name | formula | config | when | source |",
        "|---|---|---|---|---|",
    ]
    for s in SETTINGS:
        cells = [f"**{s.name}**", f"{s.title} `{s.formula}`", f"`{s.key}`", s.use, s.source]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _presets() -> str:
    lines = ["## Presets\n", "| preset | what it sets | needs | about |", "|---|---|---|---|"]
    for name, preset in PRESETS.items():
        if "/" not in name:
            cells = [f"**{name}**", _choices(flat(preset.algorithm)), needs_of(name), preset.about]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _frameworks() -> str:
    lines = [
        "## The numerics of other frameworks\n",
        "`preset: verl/grpo` computes what verl computes; `hybridrl/config/frameworks/` names the versions."
        " `hybridrl algo diff grpo --a verl --b trl` shows what differs on a batch, and why.\n",
        "| preset | what it sets | differs from ours in | not kept |",
        "|---|---|---|---|",
    ]
    for algorithm, rows in COMPATIBILITY.items():
        for framework, row in rows.items():
            cells = [f"**{framework}/{algorithm}**", _choices(flat(row.algorithm)), row.about, row.not_kept]
            lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "\nNames of theirs without a row:\n",
        *(f"- **{name}**: {why}." for name, why in ABSENT.items()),
    ]
    return "\n".join(lines) + "\n"


def _choices(pairs: list[tuple[str, str]]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in pairs)


def _guards() -> str:
    lines = [
        "## Guards\n",
        "Every step is checked for mistakes that train without an error."
        " A certain mistake ends the run before the optimizer step; a suspicious finding is reported once."
        " `algorithm.guards: off` turns them off.\n",
        "How often they fire at correct steps is measured: `python -m benchmarks.guards` simulates 30,000"
        " steps in each of many regimes (sharp and flat policies, heavy tails, short answers, engines of few"
        " bits), and `benchmarks/results/guards.json` has the rates with their upper bounds.\n",
    ]
    return "\n".join(lines + [f"- **{name}**: {text}" for name, text in _guard_texts()]) + "\n"


def _guard_texts() -> Iterator[tuple[str, str]]:
    for name, guard in GUARDS.items():
        yield name, " ".join((guard.__doc__ or "").split("\n\n")[0].split())


_SOURCES = {"controller": "controller", "block": "token blocks", "ranks": "trainer ranks", None: "-"}


def _columns() -> str:
    lines = ["## Columns\n", "| column | per | shape | type | from | meaning |", "|---|---|---|---|---|---|"]
    for name, spec in COLUMNS.items():
        dtype, source = spec.dtype.replace("|", " or "), _SOURCES[spec.source]
        lines.append(
            f"| {name} | {spec.per} | [{', '.join(spec.shape)}] | {dtype} | {source} | {spec.meaning} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(render(), end="")
