"""Which groups a run has trained on, from its checkpoints."""

import json
from pathlib import Path


def done(checkpoint: Path) -> set[int]:
    """Indices of the groups that were started and are no longer open: those that were trained on."""
    progress = json.loads((checkpoint / "COMMITTED").read_text())["progress"]
    prompts = progress["prompts"]
    position = prompts["epoch"] * prompts["num_rows"] + prompts["position"]
    return set(range(position)) - opened(checkpoint)


def opened(checkpoint: Path) -> set[int]:
    from hybridrl.trainer.saved_groups import read

    scalars, blocks = read(checkpoint)
    finished = set(scalars["index_G"].tolist()) if blocks else set()
    unfinished = json.loads((checkpoint / "COMMITTED").read_text())["progress"]["open"]["unfinished"]
    assert not finished & set(unfinished)
    return finished | set(unfinished)
