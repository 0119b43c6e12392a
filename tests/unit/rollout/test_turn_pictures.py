"""Pictures in what an environment says: where their tokens are, what the engine is asked, what trains."""

import asyncio
import io

import numpy as np
import pytest
import torch
from picture_specs import small_tower
from PIL import Image
from turn_values import END, Words, World, says

from hybridrl.batch import RankBatch
from hybridrl.data.pictures import PictureFormat
from hybridrl.dialogue.pictures import PictureMessages
from hybridrl.environments.base import Observation
from hybridrl.errors import ConfigError, DataError
from hybridrl.models.pictures import PictureLimits
from hybridrl.rollout.base import Answer
from hybridrl.rollout.streams import packed_episodes
from hybridrl.rollout.turns import TurnPlayer
from hybridrl.trainer.packing import PackedBatch, TokenPartition
from hybridrl.types import Prompt

VISION = small_tower(image_token=17, image_start=16, image_end=18)
SIDE = VISION.token_pixels
FORMAT = PictureFormat(VISION, PictureLimits(1, 64))
PLACE = VISION.image_token


class Shows(Words):
    """The dialogue of tokens, in which a picture is one placeholder."""

    def begin(self, messages, tools):
        contents = [message["content"] for message in messages]
        parts = [[content] if isinstance(content, str) else content for content in contents]
        return [token for content in parts for part in content for token in self._tokens(part)]

    def _tokens(self, part):
        if isinstance(part, dict):
            return [PLACE] if part["type"] == "image" else self._tokens(part["text"])
        words = part.split() if isinstance(part, str) else [part]
        return [int(word) if str(word).isdigit() else 6 for word in words]


def png(rows, cols, shade=0):
    file = io.BytesIO()
    Image.new("RGB", (cols * SIDE, rows * SIDE), (shade, 20, 30)).save(file, "PNG")
    return file.getvalue()


def shows(picture, text="5", **more):
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
    return Observation([{"role": "user", "content": parts}], **more)


class Engine:
    def __init__(self):
        self.asked = []

    async def __call__(self, token_ids, *, turn=0, most=None, stop_token_ids=(), arrays=None):
        self.asked.append((list(token_ids), arrays))
        tokens = [10 * (turn + 1), END][:most]
        return Answer(
            id=str(turn),
            token_T=np.array(tokens, np.int32),
            logp_T=np.full(len(tokens), -1.0, np.float32),
            version_T=np.zeros(len(tokens), np.int32),
            finish="stop" if tokens[-1] == END else "length",
        )


def prompt(pictures=(), content="1 2"):
    made = Prompt("train/0", (1,), {"question": content}, pictures=tuple(pictures))
    return Prompt(made.uid, made.token_ids, made.row, pictures=made.pictures, arrays=FORMAT.arrays(made))


def play(world, asked, *, context=100, pictures=True):
    player = TurnPlayer(
        world,
        Shows(),
        lambda row: [{"role": "user", "content": row["question"]}],
        max_context_tokens=context,
        pictures=PictureMessages(FORMAT, Shows()) if pictures else None,
    )
    engine = Engine()
    return asyncio.run(player.play(asked, 77, engine)), engine


def test_every_request_has_the_pictures_that_its_tokens_show() -> None:
    asked = prompt([png(1, 2)], [{"type": "text", "text": "1"}, {"type": "image"}])
    world = World([says(3), shows(png(2, 1, shade=9)), says(4), says(done=True)])
    outcome, engine = play(world, asked)
    first, second, third = engine.asked
    assert first[0] == [1, PLACE, PLACE, 3] and first[1] is asked.arrays
    assert second[0] == [*first[0], 10, END, PLACE, PLACE, 5]
    assert second[1]["picture_size"].tolist() == [[SIDE, 2 * SIDE], [2 * SIDE, SIDE]]
    assert third[1]["picture_size"].tolist() == second[1]["picture_size"].tolist()
    ((trajectory,),), block = packed_episodes([(0, outcome.played)], 0)
    assert trajectory.prompt_tokens == 4 and trajectory.trained_tokens == 6
    assert block.columns["picture_size"][0].tolist() == second[1]["picture_size"].tolist()
    assert not block.loss_mask_T[block.token_T == PLACE].any()


def test_a_text_between_pictures_is_not_cut_in_parts_and_tags_are_words() -> None:
    parts = [{"type": "text", "text": "3 "}, {"type": "text", "text": "4"}]
    world = World([Observation([{"role": "user", "content": parts}]), says(done=True)])
    _, engine = play(world, prompt())
    assert engine.asked[0][0] == [1, 2, 3, 4]


def test_samples_that_saw_the_prompt_alone_share_its_arrays() -> None:
    asked = prompt([png(1, 1)], [{"type": "image"}])
    outcomes = [play(World([says(3), says(done=True)]), asked)[0] for _ in range(2)]
    _, block = packed_episodes([(i, outcome.played) for i, outcome in enumerate(outcomes)], 0)
    assert block.columns["pixels"][0] is block.columns["pixels"][1] is asked.arrays["pixels"]


def test_a_picture_after_the_last_answer_is_not_in_the_row() -> None:
    world = World([says(3), shows(png(8, 8)), says(done=True)])
    outcome, engine = play(world, prompt(), context=30)
    assert outcome.played.ended == "overflow" and len(engine.asked) == 1
    _, block = packed_episodes([(0, outcome.played)], 0)
    assert block.token_T.tolist() == [1, 2, 3, 10, END] and len(block.columns["picture_size"][0]) == 0


def test_a_picture_that_cannot_be_read_fails_the_episode_and_not_the_run() -> None:
    outcome, _ = play(World(*[[shows(b"no picture")] for _ in range(3)]), prompt())
    assert outcome.played.ended == "failed"
    assert "environment world: picture 1 cannot be read" in outcome.failure
    _, block = packed_episodes([(0, outcome.played)], 0)
    assert "picture_size" not in block.columns


def test_a_run_without_pictures_is_told_of_the_key() -> None:
    with pytest.raises(DataError, match="environment world shows a picture, and data.images is not set"):
        play(World([shows(png(1, 1))]), Prompt("train/0", (1,), {"question": "1"}), pictures=False)


def test_a_text_with_a_placeholder_is_refused() -> None:
    with pytest.raises(DataError, match="the text has 1 placeholder and comes with 0 pictures"):
        play(World([says(PLACE)]), prompt())


def test_a_chat_format_that_writes_no_placeholder_is_refused_at_the_start() -> None:
    class Blind(Shows):
        def _tokens(self, part):
            return [] if isinstance(part, dict) and part["type"] == "image" else super()._tokens("1")

    with pytest.raises(ConfigError, match="writes 0 placeholders for a picture in the opening"):
        PictureMessages(FORMAT, Blind())


def test_ranks_find_the_pictures_of_every_turn_once() -> None:
    """Two samples of a prompt; both saw the same second picture, the first one a third one too."""
    asked, same = prompt([png(1, 2)], [{"type": "image"}]), png(2, 1, shade=9)
    scripts = (
        [says(3), shows(same), shows(png(1, 1, shade=7)), says(done=True)],
        [says(3), shows(same), says(done=True)],
    )
    played = [(i, play(World(script), asked)[0].played) for i, script in enumerate(scripts)]
    _, block = packed_episodes(played, 0)
    zero_N = np.zeros(2, np.int64)
    batch = RankBatch(1, (block,), zero_N, np.arange(2), zero_N, zero_N, zero_N, ())
    packing = PackedBatch(batch, torch.device("cpu"), TokenPartition(), VISION).microbatch([0, 1]).packing
    assert [p.shape[:2] for p in packing.pictures.pixels] == [
        (SIDE, 2 * SIDE),
        (2 * SIDE, SIDE),
        (SIDE, SIDE),
    ]
    shown = packing.feature_T[packing.feature_T >= 0].tolist()
    assert sorted(shown) == [0, 0, 1, 1, 2, 2, 3, 3, 4]
