"""The games guess and lookup: what they answer, and what the best and the blind player earn."""

from hybridrl.environments.base import Observation, Turn
from hybridrl.environments.kinds.guess import Guess
from hybridrl.environments.kinds.kuhn_poker import KuhnPoker
from hybridrl.environments.kinds.lookup import Lookup


def play_guess(secret: int, *guesses: str) -> list[Observation]:
    game = Guess()
    seen = [game.reset({"answer": str(secret)}, 0)]
    for guess in guesses:
        seen.append(game.step(Turn(guess)))
    return seen


def test_guess_says_where_the_digit_is() -> None:
    opening, low, high, right = play_guess(6, "4", "7", "6")
    assert not opening.messages and opening.anchor == 9
    assert (low.messages, low.reward, low.anchor) == ("+", 0.1, 59)
    assert (high.messages, high.anchor, high.done) == ("-", 56, False)
    assert right.done and right.reward == 1 and right.metrics == {"solved": 1}


def test_guess_ends_at_anything_else() -> None:
    for text in ("", "12", "x", "²"):
        _, ended = play_guess(6, text)
        assert ended.done and ended.reward == 0


def test_bisection_finds_every_digit_in_four_turns() -> None:
    for secret in range(10):
        low, high, seen = 0, 9, play_guess(secret)
        for _ in range(4):
            middle = (low + high) // 2
            seen = play_guess(secret, str(middle))
            if seen[-1].done:
                break
            low, high = (middle + 1, high) if seen[-1].messages == "+" else (low, middle - 1)
        assert seen[-1].reward == 1


def lookup() -> Lookup:
    game = Lookup()
    game.reset({"registers": "9876543210", "register": 3, "answer": "6"}, 0)
    return game


def test_lookup_reads_a_register_and_pays_the_right_one_more() -> None:
    game = lookup()
    right = game.read(3)
    assert (right.messages, right.reward, right.metrics) == ("6", 0.4, {"called": 1, "called_right": 1})
    again = game.read(3)
    assert again.reward == 0 and not again.metrics  # paid once
    assert game.step(Turn("6")).reward == 1
    wrong = lookup()
    assert wrong.read(4).reward == 0.1 and wrong.step(Turn("5")).reward == 0.1
    assert (
        lookup().read(3).reward == 0.4 and wrong.step(Turn("")).reward == wrong.step(Turn("55")).reward == 0
    )


def test_lookup_pays_parts_of_a_call() -> None:
    assert [round(lookup().step(Turn(text)).reward, 3) for text in ("", "[", "[7", "[7[", "]", "6")] == [
        *(0, 0.025, 0.05, 0.05, 0),
        1,
    ]


def kuhn(cards: str, *moves: str) -> list[Observation]:
    game = KuhnPoker()
    seen = [game.reset({"cards": cards}, 0)]
    for move in moves:
        seen.append(game.step(Turn(move, agent=seen[-1].agent)))
    return seen


def test_kuhn_poker_shows_each_seat_its_card_and_the_others_move() -> None:
    seen = kuhn("JQ", "p", "b", "p")
    assert [(one.agent, one.messages) for one in seen[:3]] == [(0, "J"), (1, "Qp"), (0, "b")]
    assert seen[-1].done and [one.anchor for one in seen[:3]] == ["J", "Qp", "Jpb"]


def chips(cards: str, moves: str) -> tuple[float, float]:
    """What seats 0 and 1 win."""
    last = kuhn(cards, *moves)[-1]
    assert last.done
    (other,) = last.rewards
    won = {1 - other: last.reward, **last.rewards}
    return won[0], won[1]


def test_kuhn_poker_pays_the_chips() -> None:
    for cards, higher in (("JQ", 1), ("QJ", 0), ("KJ", 0), ("QK", 1)):
        sign = 1 if higher == 0 else -1
        assert chips(cards, "pp") == (sign, -sign)
        assert chips(cards, "bb") == chips(cards, "pbb") == (2 * sign, -2 * sign)
        assert chips(cards, "bp") == (1, -1) and chips(cards, "pbp") == (-1, 1)


def test_kuhn_poker_ends_at_anything_else() -> None:
    for text, reward in (("", -3), ("x", -3), ("pb", -2), ("B", -3)):
        ended = kuhn("JK", text)[-1]
        assert ended.done and ended.reward == reward and not ended.rewards


def test_kuhn_poker_counts_moves_that_are_never_right() -> None:
    (_, _, faced, called) = kuhn("JK", "p", "b", "b")
    assert faced.metrics == {"king_after_pass_1": 1, "king_after_pass_1_right": 1}
    assert called.metrics == {"jack_facing_bet_0": 1, "jack_facing_bet_0_right": 0}
    assert kuhn("QK", "b", "b")[-1].metrics == {"king_facing_bet_1": 1, "king_facing_bet_1_right": 1}


def test_best_play_of_kuhn_poker_is_worth_an_eighteenth_to_the_second_seat() -> None:
    """With the probabilities of betting that Kuhn gives; the first seat may choose `bluff` from 0 to 1/3."""
    bluff = 0.2
    first = {"J": bluff, "Q": 0.0, "K": 3 * bluff, "Jpb": 0.0, "Qpb": bluff + 1 / 3, "Kpb": 1.0}
    second = {"Jp": 1 / 3, "Qp": 0.0, "Kp": 1.0, "Jb": 0.0, "Qb": 1 / 3, "Kb": 1.0}
    bets = first | second

    def value(cards: str, moves: str = "") -> float:
        seen = kuhn(cards, *moves)[-1]
        if seen.done:
            return chips(cards, moves)[0]
        bet = bets[str(seen.anchor)]
        return bet * value(cards, moves + "b") + (1 - bet) * value(cards, moves + "p")

    pairs = [a + b for a in "JQK" for b in "JQK" if a != b]
    assert abs(sum(map(value, pairs)) / 6 + 1 / 18) < 1e-12
