"""Plays episodes in which a program is in charge: it asks for answers, and says when it is done."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from hybridrl.dialogue.base import Dialogue
from hybridrl.environments.base import EnvironmentFailedError, Message
from hybridrl.gateway.conversation import Conversations, Limits
from hybridrl.gateway.ending import Ending
from hybridrl.gateway.program import PlayedEpisode, ProgramSource, failed
from hybridrl.gateway.server import MODEL, Gateway, Session
from hybridrl.rollout.streams import Played, TokenStream
from hybridrl.rollout.turns import MOST_ATTEMPTS, AskTurn, Outcome
from hybridrl.types import Ended, Prompt
from hybridrl.wording import counted

NAME = "program"
"""Name of the program in metrics, as of an environment."""


class ProgramPlayer:
    """Plays the episodes of one engine; implements Player."""

    def __init__(
        self,
        gateway: Gateway,
        programs: ProgramSource,
        dialogue: Dialogue,
        opening: Callable[[Mapping[str, Any]], Sequence[Message]],
        limits: Limits,
        *,
        timeout_s: float,
        max_sessions: int,
        heldout_requests: int | None = None,
    ) -> None:
        """
        Args:
            opening: messages of a row's prompt.
            timeout_s: an episode ends after this time with what it has.
            heldout_requests: most answers of a held-out episode. None: limits.max_requests.
        """
        self._gateway, self._programs, self._dialogue = gateway, programs, dialogue
        self._opening, self._limits, self._timeout_s = opening, limits, timeout_s
        self._heldout = replace(limits, max_requests=heldout_requests or limits.max_requests)
        self._sessions = asyncio.Semaphore(max_sessions)

    async def play(self, prompt: Prompt, seed: int, ask: AskTurn, *, heldout: bool = False) -> Outcome:
        """Play an episode; if the program fails, again from its seed.

        Args:
            seed: seed that the program gets.
        """
        outcome = Outcome(Played((TokenStream(tokens=list(prompt.token_ids[:1])),), "failed", "abort"))
        outcome.sums[f"environment/{NAME}/episodes"] += 1
        async with self._sessions:
            for _ in range(MOST_ATTEMPTS):
                own = Conversations(self._dialogue, ask, self._heldout if heldout else self._limits)
                try:
                    ending, ended, outcome.overdue = await self._played(own, prompt, seed)
                except EnvironmentFailedError as error:
                    outcome.failure = str(error)
                    outcome.lost_tokens += sum(len(stream.version_U) for stream in own.streams)
                    outcome.sums["episodes/retried"] += 1
                    continue
                outcome.failure = ""
                outcome.played = _played(own, ending, ended) or replace(
                    outcome.played, ended=ended, finish="stop"
                )
                _count(outcome, own, ending)
                return outcome
        return outcome

    async def _played(
        self, conversations: Conversations, prompt: Prompt, seed: int
    ) -> tuple[Ending, Ended, str]:
        """
        Returns:
            What the program said at its end, how the episode ended, and what it was doing at its deadline.

        Raises:
            EnvironmentFailedError: the program failed.
            HybridRLError: the engine failed.
        """
        session = self._gateway.open(conversations, self._programs.address)
        episode = {
            "base_url": f"{session.url}/v1",
            "key": session.key,
            "model": MODEL,
            "messages": list(self._opening(prompt.row)),
            "row": dict(prompt.row),
            "seed": seed,
        }
        try:
            ended, overdue = await self._run(session, conversations, episode)
            await conversations.settle()
        except BaseException:
            conversations.cancel()
            raise
        finally:
            self._gateway.end(session)
        said = session.ended.done() and not session.ended.cancelled()
        return (session.ended.result() if said else Ending()), ended, overdue

    async def _run(
        self, session: Session, conversations: Conversations, episode: Mapping[str, Any]
    ) -> tuple[Ended, str]:
        running, ended = await self._programs.begin(episode), None
        try:
            ended = await self._until_end(session, running)
            return ended, self._overdue(conversations, running) if ended == "deadline" else ""
        finally:
            self._gateway.end(session)
            await running.end(hangs=ended in (None, "deadline"))

    def _overdue(self, conversations: Conversations, running: PlayedEpisode) -> str:
        waiting = conversations.num_waiting
        doing = f"waited for {waiting} more" if waiting else "asked for no more"
        said = f"its output ends: ...{running.output}" if running.output else "it had written nothing"
        return (
            f"an episode reached program.timeout_s = {self._timeout_s:g}: the program had got "
            f"{counted(conversations.num_answers, 'answer')} and {doing}; {said}"
        )

    async def _until_end(self, session: Session, running: PlayedEpisode) -> Ended:
        """Wait until the program exits or calls `done`, or until its time is over."""
        await asyncio.wait(
            [running.exited, session.ended],
            timeout=self._timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if session.ended.done():
            session.ended.result()  # raises what the engine raised
            return "done"
        if not running.exited.done():
            return "deadline"
        if why := running.exited.result():
            raise failed(why)
        return "done"


def _played(conversations: Conversations, ending: Ending, ended: Ended) -> Played | None:
    """The streams of an episode, the one with the newest answer first; None: there was no answer."""
    streams = [stream for stream in conversations.streams if stream.turns]
    if not streams:
        return None
    main = conversations.last
    streams.sort(key=lambda stream: stream is not main)
    for branch, stream in enumerate(streams):
        stream.branch = branch
        stream.earn(ending.reward)
    truncated = ended != "done" or streams[0].turns[-1].answer.finish == "length"
    return Played(tuple(streams), ended, "length" if truncated else "stop")


def _count(outcome: Outcome, conversations: Conversations, ending: Ending) -> None:
    outcome.reported = dict(ending.metrics)
    for name, value in ending.metrics.items():
        outcome.sums[f"environment/{NAME}/{name}"] += value
    outcome.sums["gateway/requests"] += conversations.num_answers
    outcome.sums["gateway/repeated"] += conversations.repeated
    for reason, count in conversations.branches.items():
        outcome.sums[f"gateway/branches/{reason}"] += count
