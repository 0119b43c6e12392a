"""Five algorithms in the setting of the quickstart, by preset alone: held-out accuracy by policy update.

With --picture FILE their curves are drawn as well. Everything else is as in configs/quickstart.yaml, the seed
included, so the curves start from one model and see the same prompts.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._report import arguments, publish
from hybridrl.observe.jsonl import read
from hybridrl.observe.metrics import heldout_reward

RESULT = {
    "config": "that was run",
    "steps": "policy updates of each run",
    "heldout_by_step": "held-out accuracy by preset and policy update",
}

PRESETS = {
    "grpo": [],
    "dapo": ["algorithm.dynamic_sampling.max_rounds=3"],  # once all is solved, there is nothing to look for
    "rloo": [],
    "reinforce_plus_plus": [],
    "remax": [],
}
COLOURS = ("#2a78d6", "#c2410c", "#15803d", "#7e22ce", "#a16207")


def main() -> None:
    options = arguments(
        __doc__,
        smoke={"steps": 3, "presets": "grpo,dapo"},
        config="configs/quickstart.yaml",
        steps=80,
        presets=",".join(PRESETS),
        picture="",
    )
    presets = options.presets.split(",")
    if unknown := set(presets) - PRESETS.keys():
        raise SystemExit(f"--presets {','.join(sorted(unknown))}: they are of {', '.join(PRESETS)}")
    with tempfile.TemporaryDirectory() as folder:
        curves = {preset: train(options.config, folder, preset, options.steps) for preset in presets}
    publish({"config": options.config, "steps": options.steps, "heldout_by_step": curves}, options.json)
    if options.picture:
        draw(curves, Path(options.picture))


def train(config: str, folder: str, preset: str, steps: int) -> dict[int, float]:
    overrides = [f"run.folder={folder}", f"run.name={preset}", f"run.steps={steps}", "run.export=false"]
    algorithm = [f"algorithm.preset={preset}", *PRESETS[preset]]
    subprocess.run([sys.executable, "-m", "hybridrl", "launch", config, *overrides, *algorithm], check=True)
    records = read(Path(folder) / preset / "metrics.jsonl")
    return {r.step: reward for r in records if (reward := heldout_reward(r.metrics)) is not None}


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    picture = Figure(figsize=(8, 4.5), layout="constrained")
    axes = picture.add_subplot()
    for (preset, curve), colour in zip(curves.items(), COLOURS):
        axes.plot(
            list(curve), list(curve.values()), "o-", markersize=4, linewidth=1.8, color=colour, label=preset
        )
    axes.set_xlabel("policy updates")
    axes.set_ylabel("held-out accuracy")
    axes.set_ylim(0, 1.02)
    axes.grid(color="#e4e4e4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    picture.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
