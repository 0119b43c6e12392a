"""Kuhn poker, one round for two players with three cards: a jack, a queen and a king.

environment: {name: kuhn_poker, max_turns: 3}

The task kuhn_poker makes its rows, which say who holds which card. Both players pay one chip. Each turn is a
letter: `p` passes (a check, or a fold after a bet), `b` puts one more chip in (a bet, or a call). The player
reads their own card first, and then what the other one does. After a fold, a call, or two passes, the chips
go to the other player, or to the higher card. An answer of another form ends the game and costs more than any
game does.

Kuhn 1950: with best play, seat 0 loses 1/18 of a chip on average. Never right are to call a bet with the
jack, to fold the king, and to pass the king in the second seat after a pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hybridrl.environments.base import Observation, Turn
from hybridrl.registry import register

CARDS = "JQK"
PASS, BET = "p", "b"

_ENDS = {"pp": 1, "bp": 1, "pbp": 1, "bb": 2, "pbb": 2}
"""Moves that end a game -> the chips that the winner gains."""


@register("environment", "kuhn_poker")
@dataclass(kw_only=True)
class KuhnPoker:
    malformed: float = -3.0
    """Reward of an answer that is no move; one that begins with a move pays a third less."""

    def reset(self, row: Mapping[str, Any], seed: int) -> Observation:
        self._cards, self._moves = row["cards"], ""
        return self._shown(0)

    def step(self, turn: Turn) -> Observation:
        player, card = turn.agent, self._cards[turn.agent]
        if turn.finish != "stop" or turn.text not in (PASS, BET):
            lost = self.malformed * (2 / 3 if turn.text[:1] in {PASS, BET} else 1)
            return Observation(reward=lost, done=True, metrics={"malformed": 1.0})
        metrics = _counted(player, card, self._moves, turn.text)
        self._moves += turn.text
        if self._moves not in _ENDS:
            return self._shown(1 - player, metrics)
        won = _ENDS[self._moves] if self._winner(player) == player else -_ENDS[self._moves]
        return Observation(reward=float(won), rewards={1 - player: -float(won)}, done=True, metrics=metrics)

    def _shown(self, player: int, metrics: Mapping[str, float] | None = None) -> Observation:
        """What a player sees before a move: the card, before the first one, and the other's move."""
        card = self._cards[player] if len(self._moves) < 2 else ""
        return Observation(
            f"{card}{self._moves[-1:]}",
            agent=player,
            anchor=f"{self._cards[player]}{self._moves}",
            metrics=metrics or {},
        )

    def _winner(self, last: int) -> int:
        """
        Args:
            last: who made the last move.
        """
        if self._moves.endswith(BET + PASS):
            return 1 - last
        return max((0, 1), key=lambda player: CARDS.index(self._cards[player]))


def _counted(player: int, card: str, moves: str, move: str) -> dict[str, float]:
    """How often a move was due for which one choice is never right, and how often it was right."""
    faces_bet = moves.endswith(BET)
    due = {
        f"jack_facing_bet_{player}": (card == "J" and faces_bet, PASS),
        f"king_facing_bet_{player}": (card == "K" and faces_bet, BET),
        f"king_after_pass_{player}": (card == "K" and moves == PASS, BET),
    }
    return {
        key: value
        for name, (is_due, right) in due.items()
        if is_due
        for key, value in ((name, 1.0), (f"{name}_right", float(move == right)))
    }
