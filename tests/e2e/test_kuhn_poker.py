"""Self-play: the policy learns the moves of Kuhn poker for which one choice is never right."""

from pathlib import Path

import pytest
import torch
from recipe_runs import ROOT, last, launched
from transformers import AutoModelForCausalLM

from hybridrl.models.tiny import KUHN_POKER

RIGHT = {"Jpb": "p", "Jb": "p", "Kpb": "b", "Kb": "b", "Kp": "b"}
"""What a seat has seen, its own move among it -> the move that alone is right: seat 0 after a pass and a bet,
seat 1 after a bet and after a pass."""


@pytest.mark.slow
def test_kuhn_poker_is_learnt_from_random_weights(tmp_path: Path) -> None:
    metrics, _ = launched(tmp_path, str(ROOT / "configs" / "kuhn_poker.yaml"), "run.seed=21")
    for situation in ("jack_facing_bet_0", "jack_facing_bet_1", "king_facing_bet_1", "king_after_pass_1"):
        due, right = (
            last(metrics, f"val-aux/kuhn_poker/{situation}{end}/mean_at_4") for end in ("", "_right")
        )
        assert due > 0 and right / due >= 0.95, situation
    # Seat 0 nearly always bets its king, so the policy itself is asked for the other situation too.
    (folder,) = tmp_path.glob("runs/*/export")
    chances = {seen: chance(folder, seen, move) for seen, move in RIGHT.items()}
    assert min(chances.values()) >= 0.95, chances


def chance(folder: Path, seen: str, move: str) -> float:
    """Probability of a move."""
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([list(map(KUHN_POKER.index, f":{seen}"))])
    with torch.no_grad():
        return float(policy(ids).logits[0, -1].softmax(-1)[KUHN_POKER.index(move)])
