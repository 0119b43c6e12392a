"""The games guess and lookup: what they answer, and what the best and the blind player earn."""

from hybridrl.environments.base import Observation, Turn
from hybridrl.environments.kinds.guess import Guess
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
