"""Draws layouts.png from the layouts themselves: python docs/pictures/layouts.py

Rows of fused q, k and v of a layer with 4 query heads and 2 key-value heads: as a checkpoint has them, in two
Megatron ranks, in an SGLang rank, and the copies between the ranks.
"""

from pathlib import Path

import matplotlib.pyplot as plt

from hybridrl.layout.megatron import MegatronLayout
from hybridrl.layout.sglang import SGLangLayout
from hybridrl.models.spec import ModelSpec
from hybridrl.reshard.plan import Job, plan

SPEC = ModelSpec(
    family="llama",
    hidden_size=8,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=1,
    ffn_size=8,
    vocab_size=8,
    tied=False,
    qkv_bias=False,
    attention_out_bias=False,
    qk_norm=False,
    norm_eps=1e-6,
    rope_theta=1e4,
    max_positions=8,
    dtype="float32",
)
NAMES = ("q0", "q1", "q2", "q3", "k0", "k1", "v0", "v1")
COLOURS = {"q": "#4c78a8", "k": "#f58518", "v": "#54a24b"}
PARAM = "layers.0.qkv"
GAP = 5.2


def main() -> None:
    source, target = MegatronLayout(SPEC, tp=2), SGLangLayout(SPEC)
    figure, axes = plt.subplots(figsize=(9, 4.4), dpi=150)
    column(axes, 0, -0.7, "canonical: the checkpoint's\nq, k, v end to end", range(len(NAMES)))
    for rank in range(2):
        column(axes, 4, -rank * GAP, f"Megatron TP2, rank {rank}", rows_of(source, rank))
    column(axes, 8, -0.7, "SGLang TP1", rows_of(target, 0))
    for transfer in plan(Job(source, (target,))):
        if transfer.param == "layers.*.qkv":
            for box in transfer.boxes:
                y = -transfer.source_rank * GAP - box.source[0] - box.shape[0] / 2
                to = -0.7 - box.target[0] - box.shape[0] / 2
                axes.annotate("", (7.95, to), (5.05, y), arrowprops={"arrowstyle": "->", "color": "#555"})
    axes.set_xlim(-0.9, 9.9)
    axes.set_ylim(-9.6, 1.6)
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("layouts.png"), bbox_inches="tight")


def rows_of(layout: MegatronLayout | SGLangLayout, rank: int) -> list[int]:
    """Canonical row of each row of a rank's fused tensor."""
    shard = next(shard for shard in layout.shards(rank).values() if shard.param == PARAM)
    rows = [(run.local + i, run.at + i) for run in shard.rows for i in range(run.length)]
    return [at for _, at in sorted(rows)]


def column(axes: plt.Axes, x: float, top: float, title: str, rows: list[int] | range) -> None:
    axes.text(x + 0.5, top + 0.25, title, ha="center", va="bottom", fontsize=9)
    for i, row in enumerate(rows):
        name = NAMES[row]
        axes.add_patch(plt.Rectangle((x, top - i - 1), 1, 1, fc=COLOURS[name[0]], ec="white", lw=2))
        axes.text(x + 0.5, top - i - 0.5, name, ha="center", va="center", color="white", fontsize=9)


if __name__ == "__main__":
    main()
