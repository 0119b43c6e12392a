"""Models, parallel layouts and options for which Transformer Engine's modules are built without a GPU."""

from pathlib import Path

import trainer_models as models
import trainer_values as values

from hybridrl.config.training import TrainParallel
from hybridrl.models.spec import read

KINDS = (*models.KINDS, *(kind for kind in values.FAMILIES if kind != "odd"))  # pp = 2 does not divide odd
LAYOUTS = {
    "one rank": TrainParallel(dp=1),
    "tp2": TrainParallel(dp=1, tp=2),
    "pp2 ep2": TrainParallel(dp=2, pp=2, ep=2),
    "tp2 etp2 cp2": TrainParallel(dp=1, tp=2, etp=2, cp=2),
}
PRECISIONS = ("bf16", "fp32")
FP8 = ("none", "tensorwise", "blockwise", "mxfp8")
RECOMPUTE = ("none", "selective", "full")


def make_models(folder: Path) -> None:
    for kind in KINDS:
        make = models.make_model if kind in models.KINDS else values.make_model
        make(folder, kind)


def parallel_of(folder: Path, layout: str) -> TrainParallel:
    """The layout, for a model without experts without what is theirs."""
    dense = not read(folder).num_experts
    return LAYOUTS[layout].model_copy(update={"ep": 1, "etp": 1} if dense else {})


def key(kind: str, layout: str, rank: int, precision: str) -> str:
    return f"{kind}, {layout}, rank {rank}, {precision}"
