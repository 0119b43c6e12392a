"""A run that learns to see, on the real stack: into the engine with the tower, to transformers, and on from a
checkpoint."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hybridrl.config.load import load
from hybridrl.data.tasks.shapes import shapes
from hybridrl.export import command as exporting
from hybridrl.launch.pictures import picture_format
from hybridrl.models.patches import patches
from hybridrl.models.pictures import pictures_of
from hybridrl.observe.names import LOGP_GAP
from hybridrl.types import Prompt

SHAPES = Path(__file__).parents[2] / "configs" / "shapes_vlm.yaml"
SUPPORT = Path(__file__).parents[1] / "support"
CHANCE = 0.35
"""More than what is right by chance: one of four colours, in 256 questions."""

BACKENDS = {"megatron": (), "fsdp": ("actor.backend=fsdp", "actor.parallel={dp: 2}")}
"""Backend -> how a run is told to train with it."""

pytestmark = pytest.mark.slow


def launch(folder: Path, *arguments: str) -> Path:
    command = [sys.executable, "-m", "hybridrl", "launch", str(SHAPES), *arguments]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=480, check=False, env=variables
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "shapes_vlm"


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps(run: Path) -> list[dict]:
    return [line for line in lines(run) if line["kind"] == "step"]


def heldout(run: Path) -> list[float]:
    """Shares of right answers to held-out questions, in order."""
    return [value for line in lines(run) for key, value in line.items() if _is_score(key)]


def _is_score(key: str) -> bool:
    return key.startswith("val-core/") and key.endswith("mean_at_1")


@pytest.fixture(scope="module", params=BACKENDS)
def keys(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return ("run.steps=30", "run.save_every=27", *BACKENDS[request.param])


@pytest.fixture(scope="module")
def run(keys: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("work"), *keys)


def test_it_learns_to_see(run: Path) -> None:
    scores = heldout(run)
    assert scores[0] < CHANCE and scores[-1] >= 0.9, scores


def test_the_engine_serves_the_tower_of_the_trainer(run: Path) -> None:
    assert json.loads((run / "summary.json").read_text())["swap_checksums_ok"] is True
    assert all(line[LOGP_GAP] < 2e-5 for line in steps(run)), [line[LOGP_GAP] for line in steps(run)]


def test_the_export_sees_in_transformers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])  # the config names the model's folder from there
    exported = exporting.export_run(run, step=None, to=run / "seen")
    proof = exporting.prove(exported)
    assert proof.num_tokens > 30 and proof.max_abs_diff < 1e-5, proof


def test_the_processor_of_the_export_makes_the_same_pixels(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])  # the config names the model's folder from there
    from transformers import AutoProcessor

    pictures = picture_format(load(run / "resolved.yaml").config)
    assert pictures is not None
    processor = AutoProcessor.from_pretrained(run / "export")
    for row in shapes(seed=5, size=4):
        encoded = row["images"][0]["bytes"]
        shown = Image.open(io.BytesIO(encoded)).convert("RGB")
        made = processor(text=["<|vision_start|><|image_pad|><|vision_end|>l="], images=[shown])
        arrays = pictures.arrays(Prompt("a", (), {}, pictures=(encoded,)))
        (pixels,) = pictures_of(arrays["pixels"], arrays["picture_size"])
        ours = patches(torch.tensor(pixels), pictures.vision)
        assert np.abs(np.asarray(made["pixel_values"]) - ours.numpy()).max() < 1e-6
        assert np.asarray(made["input_ids"][0]).tolist().count(pictures.vision.image_token) == 2


def test_a_resumed_run_is_the_uninterrupted_one(run: Path, keys: tuple[str, ...]) -> None:
    whole, exported = steps(run), (run / "export" / "model.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints" / "step_000030")
    shutil.rmtree(run / "export")
    again = steps(launch(run.parents[1], *keys, "--resume"))
    assert [line["step"] for line in again][-3:] == [28, 29, 30]
    for name in ("actor/loss", "actor/grad_norm", "critic/score/mean"):
        assert [line[name] for line in again[-3:]] == [line[name] for line in whole[-3:]], name
    assert (run / "export" / "model.safetensors").read_bytes() == exported


def test_with_the_pictures_of_other_rows_there_is_nothing_to_learn(tmp_path: Path) -> None:
    scores = heldout(launch(tmp_path, "data.train.shuffled=true", "run.steps=30"))
    assert scores[-1] < CHANCE, scores


@pytest.mark.parametrize(
    ("mode", "backend"), [("frozen", "megatron"), ("projector", "megatron"), ("projector", "fsdp")]
)
def test_what_is_not_trained_of_the_tower_is_written_by_the_first_swap_only(
    tmp_path: Path, mode: str, backend: str
) -> None:
    optimizer = "actor.optimizer.schedule=constant", "actor.optimizer.warmup_steps=0"
    keys = f"actor.vision.mode={mode}", "run.save_every=2", *optimizer, *BACKENDS[backend]
    run = launch(tmp_path, *keys, "run.steps=2")
    shutil.rmtree(run / "export")
    again = launch(tmp_path, *keys, "run.steps=3", "--resume")
    (exported,) = (run / "export").glob("*.safetensors")
    trained = {name: t for name, t in load_file(exported).items() if _is_trained(name, mode)}
    wanted = sum(tensor.nbytes for tensor in trained.values())  # there is one engine
    assert [line["sync/written_bytes"] for line in steps(again)] == [wanted] * 3
    assert json.loads((run / "summary.json").read_text())["swap_checksums_ok"] is True


def _is_trained(name: str, mode: str) -> bool:
    return "visual." not in name or (mode == "projector" and "merger" in name)


def test_episodes_see_a_picture_in_every_turn(tmp_path: Path) -> None:
    """Engine and trainer agree on all turns, before and after swaps."""
    keys = (
        "environment={name: shape_turns:Shapes, max_turns: 3}",
        "reward=none",
        "rollout.max_context_tokens=96",  # the prefix cache is off where prompts are shorter than 64 tokens
        "batch={prompts_per_step: 16, minibatch_prompts: 8, epochs: 2}",
        "actor.optimizer.warmup_steps=1",
        "data.heldout.size=32",
    )
    run = launch(tmp_path, *keys, "run.steps=3")
    assert all(line[LOGP_GAP] < 2e-5 for line in steps(run)), [line[LOGP_GAP] for line in steps(run)]
    assert all(2.5 < line["num_turns/mean"] <= 3 for line in steps(run))
    cached = [line["rollout/cached_share"] for line in steps(run)]  # pictures of earlier turns included
    assert min(cached) > 0.3, cached
    assert json.loads((run / "summary.json").read_text())["swap_checksums_ok"] is True
