"""Pictures in a dialogue: taken out of messages, and given as many placeholders as they have tokens."""

import asyncio
from collections.abc import Sequence

import numpy as np

from hybridrl.data.pictures import Encoded, PictureFormat, taken_out
from hybridrl.dialogue.base import Dialogue
from hybridrl.environments.base import Message
from hybridrl.errors import ConfigError, DataError
from hybridrl.wording import counted

Decoded = Sequence[np.ndarray]
"""Pictures as the model is given them: uint8 [height, width, 3] each."""

_SEEN: Message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}


class PictureMessages:
    """Pictures in messages, for one model and one chat format."""

    def __init__(self, pictures: PictureFormat, dialogue: Dialogue) -> None:
        """
        Raises:
            ConfigError: the chat format writes no placeholder, or several ones, for a picture.
        """
        self._pictures, self._vision = pictures, pictures.vision
        opening = dialogue.begin([_SEEN], ())
        later = dialogue.more(opening, dialogue.stop_token_ids[:1], [_SEEN], ())
        for where, ids in (("the opening", opening), ("a later message", later)):
            if (count := list(ids).count(self._vision.image_token)) != 1:
                raise ConfigError(
                    f"the chat format writes {counted(count, 'placeholder')} for a picture in {where}",
                    where="data.chat_template",
                    fix="the template of the model, which writes one",
                )

    def opening(self, messages: Sequence[Message], pictures: Sequence[Encoded], place: str) -> list[Message]:
        """The messages of a prompt, with places for its pictures.

        Raises:
            DataError: there are more or fewer places than pictures.
        """
        return taken_out(messages, place, pictures)[0]

    async def read(self, messages: Sequence[Message], place: str) -> tuple[list[Message], Decoded]:
        """Messages with places for pictures, and the pictures that were there.

        Raises:
            DataError: a picture cannot be read or shown.
        """
        told, found = taken_out(messages, place)
        # In a thread, so that the engine's answers are taken meanwhile.
        return told, await asyncio.to_thread(self._pictures.decode, found, place) if found else []

    def expanded(self, ids: Sequence[int], pictures: Decoded, place: str) -> tuple[list[int], list[int]]:
        """Token ids with a placeholder for each token of a picture, and where each picture begins in them.

        Args:
            ids: with one placeholder for each picture.
            place: what the tokens are of, for the error.

        Raises:
            DataError: there are more or fewer placeholders than pictures.
        """
        token, counts = self._vision.image_token, [self._vision.tokens(*p.shape[:2]) for p in pictures]
        if (count := list(ids).count(token)) != len(pictures):
            raise DataError(
                f"{place}: the text has {counted(count, 'placeholder')} and comes with "
                f"{counted(len(pictures), 'picture')}",
                where="data.chat_template",
                fix="a template that writes a placeholder for each picture, and no placeholder in a text",
            )
        found, starts = list[int](), list[int]()
        for id_ in ids:
            if id_ == token:
                starts.append(len(found))
            found += [id_] * (counts[len(starts) - 1] if id_ == token else 1)
        return found, starts
