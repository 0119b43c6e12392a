"""The tokens of an episode: append-only, as the engine saw and sampled them.

A sampled token is never rendered or tokenised again. What lies between two answers is appended, and not
trained on. A stream becomes one row of a token block, which ends with the last sampled token.
Shape letters: T tokens of the stream, M its turns.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hybridrl.answer_columns import end_to_end, head_columns
from hybridrl.batch import TokenBlock
from hybridrl.columns import PIXELS, SIZES, TURN_START
from hybridrl.models.pictures import picture_columns, pictures_of, stored
from hybridrl.rollout.answers import spans_of
from hybridrl.rollout.base import Answer
from hybridrl.types import Ended, Finish, PolicyVersion, Trajectory


@dataclass(slots=True)
class StreamTurn:
    """An answer of the policy in its stream."""

    start: int
    """Index of its first token in the stream."""

    answer: Answer
    anchor: int
    reward: float = 0.0


@dataclass(slots=True)
class TokenStream:
    """The tokens of one role of an episode."""

    agent: int = 0
    branch: int = 0
    """Number of the stream among those of its role in the episode. 0 is the one with the last answer."""

    tokens: list[int] = field(default_factory=list)
    turns: list[StreamTurn] = field(default_factory=list)
    observed: list[range] = field(default_factory=list)
    """Indices of the tokens that the environment wrote."""

    of_prompt: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The pictures of the prompt as arrays; {}: the run has no pictures."""

    shown: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """Further pictures, each with the index of its first token."""

    def pictures(self, length: int) -> Mapping[str, np.ndarray]:
        """The pictures of the first `length` tokens as arrays; those of the prompt alone are the prompt's."""
        further = [picture for start, picture in self.shown if start < length]
        if not further:
            return self.of_prompt
        pixels, sizes = stored([*pictures_of(self.of_prompt[PIXELS], self.of_prompt[SIZES]), *further])
        return {PIXELS: pixels, SIZES: sizes}

    def observe(self, token_ids: Sequence[int], said: range = range(0)) -> None:
        """Append tokens that the policy did not sample.

        Args:
            said: indices of those that are the environment's words, not the chat format's.
        """
        self.observed += [range(len(self.tokens) + said.start, len(self.tokens) + said.stop)] * bool(said)
        self.tokens += token_ids

    def act(self, answer: Answer, anchor: int | str | None) -> None:
        """Append an answer to the tokens so far.

        Args:
            anchor: state in which the turn was taken; None: the number of the turn.
        """
        number = len(self.turns) if anchor is None else anchor_number(anchor)
        self.turns.append(StreamTurn(len(self.tokens), answer, number))
        self.tokens += answer.token_T.tolist()

    def earn(self, reward: float) -> None:
        """Add to the reward of the last turn; a stream without a turn earns nothing."""
        if self.turns:
            self.turns[-1].reward += reward

    @property
    def prompt_tokens(self) -> int:
        return self.turns[0].start if self.turns else self.length

    @property
    def length(self) -> int:
        """Tokens of its row: nothing after the last sampled token is trained on. One if none was sampled."""
        return self.turns[-1].start + len(self.turns[-1].answer.token_T) if self.turns else 1

    @property
    def version_U(self) -> np.ndarray:
        """Version of each sampled token, int32."""
        found = [turn.answer.version_T for turn in self.turns]
        return np.concatenate(found) if found else np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Played:
    """An episode that has ended."""

    streams: tuple[TokenStream, ...]
    """One for each role that took a turn; at least one."""

    ended: Ended
    finish: Finish


def anchor_number(anchor: int | str) -> int:
    """A number of a state, equal for equal states: 63 bits, of which texts use 32."""
    return zlib.crc32(anchor.encode()) if isinstance(anchor, str) else anchor & (2**63 - 1)


def packed_episodes(
    played: Sequence[tuple[int, Played]], version: PolicyVersion
) -> tuple[list[list[Trajectory]], TokenBlock]:
    """Trajectories of each episode, and one block that holds the tokens of all of them in the same order.

    Args:
        played: number of each episode in its group, and the episode.
        version: version of trajectories without a sampled token.
    """
    streams = [stream for _, episode in played for stream in episode.streams]
    rows = iter(range(len(streams)))
    found = [
        [_trajectory(next(rows), stream, number, episode, version) for stream in episode.streams]
        for number, episode in played
    ]
    return found, block_of(streams)


def block_of(streams: Sequence[TokenStream]) -> TokenBlock:
    """One block with a row for each stream."""
    length_N = np.array([stream.length for stream in streams], np.int64)
    start_N = np.concatenate([[0], np.cumsum(length_N)])
    token_T, total = np.empty(start_N[-1], np.int32), int(start_N[-1])
    logp_T, reward_T = np.zeros(total, np.float32), np.zeros(total, np.float32)
    mask_T, version_T = np.zeros(total, bool), np.full(total, -1, np.int32)
    observed_T = np.zeros(total, bool)
    starts, numbers, anchors = [], [], []
    for first, length, stream in zip(start_N.tolist(), length_N.tolist(), streams, strict=False):
        token_T[first : first + length] = stream.tokens[:length]
        for said in stream.observed:
            observed_T[first + said.start : first + min(said.stop, length)] = True
        for number, turn in enumerate(stream.turns):
            if not len(turn.answer.token_T):
                continue
            at = first + turn.start
            here = slice(at, at + len(turn.answer.token_T))
            logp_T[here], mask_T[here], version_T[here] = turn.answer.logp_T, True, turn.answer.version_T
            reward_T[here.stop - 1] = turn.reward
            starts.append(at)
            numbers.append(number)
            anchors.append(turn.anchor)
    columns = {
        "rollout_logp": logp_T,
        "version": version_T,
        "turn_reward": reward_T,
        "observed": observed_T,
        TURN_START: np.array(starts, np.int64),
        "turn": np.array(numbers, np.int64),
        "anchor": np.array(anchors, np.int64),
    }
    routed = [turn.answer.experts_SLK for stream in streams for turn in stream.turns]
    some = next((found for found in routed if found is not None), None)
    if some is not None:
        columns["experts"] = end_to_end([_experts(stream, some[:0]) for stream in streams], start_N)
    heads = [turn.answer.head_TK for stream in streams for turn in stream.turns]
    if asked := [head for head in heads if head is not None]:
        columns |= head_columns(asked, mask_T)
    columns |= picture_columns([s.pictures(s.length) if s.turns else {} for s in streams])
    prompt_tokens_N = np.array([stream.prompt_tokens for stream in streams], np.int32)
    return TokenBlock(token_T, start_N, prompt_tokens_N, mask_T, columns)


def _experts(stream: TokenStream, none: np.ndarray) -> np.ndarray:
    """Experts of the tokens of a stream but the last, [T - 1, L, K]: each as in the first request that
    computed it."""
    parts, end = [none], 0
    for turn in stream.turns:
        found = turn.answer.experts_SLK
        assert found is not None, "an answer that was not aborted has the experts of its tokens"
        parts.append(found[end:])
        end = len(found)
    return np.concatenate(parts)


def _trajectory(
    row: int, stream: TokenStream, number: int, episode: Played, version: PolicyVersion
) -> Trajectory:
    trained = sum(len(turn.answer.token_T) for turn in stream.turns)
    spans = spans_of(stream.version_U)
    return Trajectory(
        row=row,
        prompt_tokens=stream.prompt_tokens,
        response_tokens=stream.length - stream.prompt_tokens,
        trained_tokens=trained,
        finish=episode.finish,
        version=spans[0][0] if spans else version,
        spans=spans if len(spans) > 1 else (),
        turns=len(stream.turns),
        turn_reward=float(sum(turn.reward for turn in stream.turns)),
        ended=episode.ended,
        agent=stream.agent,
        branch=stream.branch,
        episode=number,
    )
