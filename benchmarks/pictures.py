"""Trainer steps on prompts with pictures: what encoding the pictures costs, and whether memory stays flat.

One rank takes steps on groups of n samples, each group with its own picture. A microbatch encodes a picture
once, however many of its samples show it. The naive way, in which every sample has a picture of its own, is
measured in turn with it, and so is a batch of the same tokens without pictures; the encoding costs what is
left after the text. Processor time is compared: other load on the machine cancels.
"""

import os
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks._report import arguments, publish
from hybridrl.batch import Batch, RankBatch, TokenBlock
from hybridrl.bench.ranks import on_ranks
from hybridrl.columns import PIXELS
from hybridrl.config.schema import AlgorithmConfig
from hybridrl.config.training import ActorConfig, CriticConfig, TrainParallel
from hybridrl.data.packing import pack_minibatches
from hybridrl.data.pictures import PictureFormat
from hybridrl.models.pictures import picture_columns, read_limits
from hybridrl.models.spec import read
from hybridrl.models.tiny_vision import vision_model
from hybridrl.trainer.setup import PolicySetup
from hybridrl.types import Group, Prompt, Trajectory

RESULT = {
    "encoding": "by n, samples of a group: processor seconds of a step with shared pictures, with a picture "
    "for each sample, and of its text alone; the cost of encoding as a share of the naive way, times n; "
    "microbatches of the step, and how often a picture is encoded",
    "memory": "MiB of the trainer process alone after each tenth of the steps, on new pictures every step; "
    "MiB of the pixels that all steps have shown",
    "text": "processor seconds of a step on text by the model with a tower, and by its text model alone",
}

WORDS, ANSWER, SIDE = 12, 8, 16
"""Tokens that are text; tokens of an answer; pixels on a side of a token."""

TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
TOWER = {
    "depth": 4,
    "hidden_size": 192,
    "intermediate_size": 512,
    "patch_size": SIDE // 2,
    "deepstack_visual_indexes": [1, 2],
}


def main() -> None:
    small = {"groups": 2, "samples": "2", "rounds": 1, "tokens": 4, "steps": 3}
    options = arguments(__doc__, smoke=small, groups=8, samples="4,8,16", rounds=3, tokens=64, steps=50)
    with TemporaryDirectory() as name:
        folder = Path(name)
        vision_model(folder / "model", "qwen3_vl", 0, text=TEXT, tower=TOWER)
        write_text_model(folder / "text", read(folder / "model").vocab_size)
        on_ranks(1, _rank, vars(options), folder)
        publish(torch.load(folder / "result.pt"), options.json)


def write_text_model(folder: Path, vocab: int) -> None:
    """A Qwen3 of the sizes of the text model inside."""
    import transformers

    sizes: dict[str, Any] = {**TEXT, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = transformers.Qwen3Config(**sizes, vocab_size=vocab, max_position_embeddings=1024)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)


def _rank(rank: int, options: dict[str, Any], folder: Path) -> None:
    torch.set_num_threads(1)
    from hybridrl.trainer.policy import Policy

    side = SIDE * int(options["tokens"] ** 0.5)
    policy = Policy(_setup(folder, "model", pictures=True))
    maker = Maker(folder / "model", options["groups"], side)
    result: dict[str, Any] = {"memory": memory(policy, maker, options["steps"]), "encoding": []}
    for n in map(int, options["samples"].split(",")):
        result["encoding"].append(encoding(policy, maker, n, options["rounds"]))
        print(result["encoding"][-1], flush=True)
    text = [maker.batch(4, shown="nothing") for _ in range(options["rounds"])]
    policy.close()
    result["text"] = {}
    for name in ("model", "text"):
        policy = Policy(_setup(folder, name, pictures=False))
        result["text"][name] = round(median(seconds(policy, batch) for batch in text), 4)
        policy.close()
    torch.save(result, folder / "result.pt")


class Maker:
    """Makes batches of random pictures and tokens."""

    def __init__(self, model: Path, groups: int, side: int) -> None:
        """
        Args:
            side: pixels on a side of every picture.
        """
        vision = read(model).vision
        assert vision is not None
        self._vision, self.groups, self._side = vision, groups, side
        self._format = PictureFormat(vision, read_limits(model, vision, (side // SIDE) ** 2))
        self._draw = np.random.default_rng(0)

    def batch(self, n: int, *, shown: str) -> RankBatch:
        """A batch of one optimizer step.

        Args:
            n: samples of a group.
            shown: "shared" pictures, one for each group; "own" ones, one for each sample; or "nothing".
        """
        prompts = self._prompts(n, shown)
        answers = self._draw.integers(0, WORDS, (len(prompts), ANSWER)).tolist()
        ids = [list(prompt.token_ids) for prompt in prompts]
        block = TokenBlock.from_answers(ids, answers, [[-1.0] * ANSWER] * len(ids), 0)
        columns = {
            **block.columns,
            **(picture_columns([prompt.arrays for prompt in prompts]) if shown != "nothing" else {}),
        }
        block = TokenBlock(block.token_T, block.start_N, block.prompt_tokens_N, block.loss_mask_T, columns)
        return self._packed(block, prompts, n)

    def _prompts(self, n: int, shown: str) -> list[Prompt]:
        tokens = self._vision.tokens(self._side, self._side)
        ids = (1, self._vision.image_start, *[self._vision.image_token] * tokens, 2)
        found: list[Prompt] = []
        for row in range(self.groups * n):
            if row % n and shown != "own":
                found.append(found[-1])
                continue
            prompt = Prompt(f"a/{row // n}", ids, {}, pictures=(self._png(),))
            found.append(
                Prompt(prompt.uid, ids, {}, pictures=prompt.pictures, arrays=self._format.arrays(prompt))
            )
        return found

    def _png(self) -> bytes:
        pixels = self._draw.integers(0, 256, (self._side, self._side, 3), dtype=np.uint8)
        file = BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    def _packed(self, block: TokenBlock, prompts: Sequence[Prompt], n: int) -> RankBatch:
        groups = []
        for first in range(0, len(prompts), n):
            size = len(prompts[first].token_ids)
            made = [
                Trajectory(
                    row=row,
                    prompt_tokens=size,
                    response_tokens=ANSWER,
                    trained_tokens=ANSWER,
                    finish="stop",
                    version=0,
                    reward=0.0,
                )
                for row in range(first, first + n)
            ]
            groups.append(Group(prompts[first], made, block=None))
        batch = Batch.pack(1, groups)
        longest = n * (size + ANSWER)
        minibatches = pack_minibatches(
            batch, minibatch_prompts=len(groups), epochs=1, num_ranks=1, microbatch_tokens=2 * longest, seed=0
        )
        count, zero_N = len(prompts), np.zeros(len(prompts), np.int64)
        advantage_N = self._draw.normal(size=count).astype(np.float32)
        return RankBatch(
            1, (block,), zero_N, np.arange(count), batch.group_N, advantage_N, advantage_N, tuple(minibatches)
        )


def encoding(policy: Any, maker: Maker, n: int, rounds: int) -> dict[str, Any]:
    ways = ("shared", "own", "nothing")
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(1 + rounds):
        for way in ways:
            found[way].append(seconds(policy, maker.batch(n, shown=way)))
    took = {way: median(found[way][1:]) for way in ways}  # the first round allocates
    share = (took["shared"] - took["nothing"]) / (took["own"] - took["nothing"])
    (minibatch,) = maker.batch(n, shown="shared").minibatches
    return {
        "n": n,
        "seconds": {way: round(value, 4) for way, value in took.items()},
        "share_of_naive": round(share, 4),
        "share_times_n": round(share * n, 3),
        "microbatches": len(minibatch.rows[0]),
        "times_encoded": sum(len({row // n for row in rows}) for rows in minibatch.rows[0]) / maker.groups,
    }


def seconds(policy: Any, batch: RankBatch) -> float:
    """Processor seconds of one optimizer step, after the columns of the batch are computed."""
    policy.load(batch)
    began = time.process_time()
    policy.step(0)
    return time.process_time() - began


def memory(policy: Any, maker: Maker, steps: int) -> dict[str, Any]:
    """Memory while every step shows new pictures."""
    process, sizes, shown = psutil.Process(os.getpid()), [], 0
    for step in range(steps):
        batch = maker.batch(4, shown="shared")
        shown += sum(array.nbytes for array in batch.blocks[0].column(PIXELS)[::4])
        policy.load(batch)
        policy.step(0)
        if (step + 1) % max(1, steps // 10) == 0:
            sizes.append(round(process.memory_full_info().uss / 2**20, 1))
    return {"steps": steps, "mib": sizes, "shown_mib": round(shown / 2**20, 1)}


def _setup(folder: Path, name: str, *, pictures: bool) -> PolicySetup:
    return PolicySetup(
        rank=0,
        rendezvous=f"file://{folder / f'rendezvous-{name}-{pictures}'}",
        parallel=TrainParallel(dp=1),
        model=read(folder / name),
        model_folder=folder / name,
        pictures=pictures,
        actor=ActorConfig(),
        algorithm=AlgorithmConfig(),
        critic=CriticConfig(),
        temperature=1.0,
        max_response_tokens=ANSWER,
        seed=0,
        num_optimizer_steps=1000,
        timeout_s=120.0,
    )


if __name__ == "__main__":
    main()
