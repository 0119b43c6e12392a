"""Pictures of prompts beside an engine: decoded and resized there, once for all samples of a prompt."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from hybridrl.data.pictures import PictureFormat
from hybridrl.rollout.groups import Ticket
from hybridrl.types import Prompt


async def shown(pictures: PictureFormat | None, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The prompts with their pictures as arrays.

    Args:
        pictures: how they are given to the model; None: prompts have none.

    Raises:
        DataError: a picture is damaged.
    """
    if pictures is None:
        return prompts
    # In a thread, so that the engine's answers are taken meanwhile.
    return await asyncio.to_thread(lambda: [replace(p, arrays=pictures.arrays(p)) for p in prompts])


async def shown_in(pictures: PictureFormat | None, tickets: Sequence[Ticket]) -> Sequence[Ticket]:
    """The same for the prompts of tickets."""
    if pictures is None:
        return tickets
    prompts = await shown(pictures, [ticket.task.prompt for ticket in tickets])
    return [
        replace(ticket, task=replace(ticket.task, prompt=prompt))
        for ticket, prompt in zip(tickets, prompts, strict=True)
    ]
