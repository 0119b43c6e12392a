"""math_verify: numbers of every size, notations that people type, and where the answer stands."""

import time

import pytest

from hybridrl.rewards.plugin import LoadedReward, load_reward


@pytest.fixture(scope="module")
def reward() -> LoadedReward:
    return load_reward("math_verify", {}, where="")


def judge(reward: LoadedReward, reference: str, answer: str) -> float:
    return reward(answer, {"answer": reference}, answer_field="answer")


SIZE_RIGHT = [
    ("1 000 000", r"\boxed{1000000}"),
    ("1,234.5", r"\boxed{1234.5}"),
    (r"6.63\times 10^{-34}", r"\boxed{6.63 \times 10^{-34}}"),
    ("1/3", r"\boxed{0.333333}"),
    ("1/3", r"\boxed{0.3333333333}"),
    ("0.333333", r"\boxed{1/3}"),
    ("0.00005", r"\boxed{5e-5}"),
    ("5e-05", r"\boxed{0.00005}"),
    ("1e-7", r"\boxed{1\times10^{-7}}"),
    ("0.0000001", r"\boxed{10^{-7}}"),
    ("0.5", r"\boxed{\frac12}"),
    ("100000.5", r"\boxed{100000.5}"),
    ("123456.789", r"\boxed{123456.789}"),
    ("1.414214", r"\boxed{\sqrt2}"),
    ("0.3333333", r"\boxed{33.33333\%}"),
]
SIZE_WRONG = [
    (r"6.63\times 10^{-34}", r"\boxed{1\times 10^{-30}}"),
    ("0.0000001", r"\boxed{0.0000002}"),
    ("0", r"\boxed{0.0000002}"),
    ("0.0000002", r"\boxed{0}"),
    ("1/3", r"\boxed{0.33}"),
    ("1/3", r"\boxed{0.3334}"),
    ("100000.5", r"\boxed{100000.6}"),
    ("123456.789", r"\boxed{123456.788}"),
    ("1000000", r"\boxed{1000000.5}"),
    ("1000000", r"\boxed{1000001}"),
    ("1.5", r"\boxed{1.50001}"),
]

NOTATION_RIGHT = [
    ("3 apples", r"\boxed{3 apples}"),
    ("3", r"\boxed{3 red apples.}"),
    ("5 años", r"\boxed{5}"),
    ("5 cm", r"\boxed{5}"),
    ("5 小时", r"\boxed{5}"),
    ("5小时", r"\boxed{5}"),
    ("90°", r"\boxed{90}"),
    ("90", r"\boxed{90°}"),
    ("€5", r"\boxed{5}"),
    ("5€", r"\boxed{5}"),
    ("$5", r"\boxed{5}"),
    (r"\$5", r"\boxed{5}"),
    ("5 м", r"\boxed{5}"),
    ("5%", r"\boxed{5\%}"),
    ("5%", r"\boxed{5}"),
    (r"90^\circ", r"\boxed{90}"),
    ("12元", r"\boxed{12}"),
    ("¥12", r"\boxed{12}"),
    ("£1,200.50", r"\boxed{1200.5}"),
    ("第3", r"\boxed{3}"),
    ("1\xa0000", r"\boxed{1000}"),
    ("1\u202f000", r"\boxed{1000}"),
    (r"1\,000", r"\boxed{1000}"),
    ("1{,}000", r"\boxed{1000}"),
    ("1_000", r"\boxed{1000}"),
    ("1'000", r"\boxed{1000}"),
    ("1,234,567", r"\boxed{1234567}"),
    ("1234", r"\boxed{1,234}"),
    ("1234", r"\boxed{1\,234}"),
    ("1234", r"\boxed{1 234}"),
    ("1234", r"\boxed{1{,}234}"),
    ("2 2/3", r"\boxed{\frac{8}{3}}"),
    ("2 2/3", r"\boxed{2\frac{2}{3}}"),
    ("2 2/3", r"\boxed{2 2/3}"),
    ("8/3", r"\boxed{2 2/3}"),
    ("-2 2/3", r"\boxed{-8/3}"),
    (r"2\frac{2}{3}", r"\boxed{8/3}"),
    (r"2 \tfrac{2}{3}", r"\boxed{8/3}"),
    ("2½", r"\boxed{5/2}"),
    (r"\sqrt{2}", r"\boxed{√2}"),
    ("√2", r"\boxed{\sqrt2}"),
    ("√(x+1)", r"\boxed{\sqrt{x+1}}"),
    ("∛8", r"\boxed{2}"),
    ("x²+1", r"\boxed{x^2+1}"),
    ("x⁻¹", r"\boxed{1/x}"),
    ("x¹⁰", r"\boxed{x^{10}}"),
    ("½", r"\boxed{0.5}"),
    ("¾", r"\boxed{3/4}"),
    ("3×10⁸", r"\boxed{3 \times 10^8}"),
    ("3×10⁸", r"\boxed{300000000}"),
    ("2π", r"\boxed{2\pi}"),
    (r"2\pi", r"\boxed{2π}"),
    ("x ≤ 3", r"\boxed{x \le 3}"),
    ("x≥3", r"\boxed{x \ge 3}"),
    ("x ≠ 3", r"\boxed{x \ne 3}"),
    ("∞", r"\boxed{\infty}"),
    ("−5", r"\boxed{-5}"),
    ("a·b", r"\boxed{ab}"),
    ("6÷2", r"\boxed{3}"),
    ("±2", r"\boxed{\pm 2}"),
    ("３", r"\boxed{3}"),
    ("x₁", r"\boxed{x_1}"),
    ("{1, 2}", r"\boxed{\{1,2\}}"),
    ("α+β", r"\boxed{\alpha+\beta}"),
    ("θ", r"\boxed{\theta}"),
    ("A ∪ B", r"\boxed{A \cup B}"),
    ("[0,1) ∪ (2,3]", r"\boxed{[0,1) \cup (2,3]}"),
    ("3/4", r"\boxed{3⁄4}"),
    ("(0.1,0.2)", r"\boxed{(1/10,1/5)}"),
    ("0", r"\boxed{0.0}"),
    ("2.0", r"\boxed{2}"),
]
NOTATION_WRONG = [
    ("3", r"\boxed{3 sin x}"),
    ("3", r"\boxed{x = 5 and y = 3}"),
    ("60", r"\boxed{3小时20分}"),
    ("5 小时", r"\boxed{6}"),
    ("5小时", r"\boxed{50}"),
    ("90°", r"\boxed{45}"),
    ("2 2/3", r"\boxed{\frac{4}{3}}"),
    ("2 2/3", r"\boxed{2}"),
    ("2 2/3", r"\boxed{2/3}"),
    ("8/3", "4/3"),
    (r"\sqrt{3}", r"\boxed{√2}"),
    ("3×10⁸", r"\boxed{3}"),
    ("½", r"\boxed{1}"),
    ("½", r"\boxed{2}"),
    ("x²", r"\boxed{x2}"),
    ("x²+1", r"\boxed{x+1}"),
    ("1 000 000", r"\boxed{0}"),
    ("1 000", r"\boxed{1}"),
    ("1 000", r"\boxed{0}"),
    ("1,2", r"\boxed{12}"),
    ("x=5", r"\boxed{6}"),
    ("3", "第4"),
    ("1/2", r"so \boxed{\frac{1}{2}"),
]

PLACE_RIGHT = [
    ("8/3", "The answer is 2 2/3."),
    ("18", "<think>2*9</think>\n<answer>18</answer>"),
    (r"\frac{1}{2}", "<think>a</think><answer>1/2</answer>"),
    ("18", r"<answer>\boxed{18}</answer>"),
    ("18", "<answer>$18</answer>"),
    ("18", "<answer>The answer is 18 apples</answer>"),
    ("(1,2)", "<answer>(1,2)</answer>"),
    ("5", r"\boxed{4}. Wait, that is wrong. So \boxed{5}."),
    ("5", r"\boxed{4}, no, \boxed{5}"),
    ("5", r"\boxed{4} or rather \boxed{5}"),
    ("5", r"\boxed{4}. \boxed{5}"),
    ("1, 2", r"\boxed{1} and \boxed{2}"),
    ("1,2", r"\boxed{1}, \boxed{2}"),
    ("1,2", r"\boxed{1} or \boxed{2}"),
    ("x=1,x=2", r"$\boxed{1}$ and $\boxed{2}$"),
    ("5", r"$\boxed{4}$. Wait. $\boxed{5}$"),
    ("5", r"$$\boxed{4}$$ wrong, so $$\boxed{5}$$"),
    ("72", "所以答案是72。"),
    ("72", "答案：72"),
    ("72", "答案是 72。"),
    ("72", "因此，小明有72个苹果。"),
    ("72", "答案是$72$。"),
    ("72", "The answer is 72."),
    ("72", "**72**"),
    ("72", "Answer: 72!"),
    ("72", "Ответ: 72."),
    ("1/2", "所以答案是1/2。"),
]
PLACE_WRONG = [
    ("9", "<think>2*9</think>\n<answer>18</answer>"),
    ("4", r"\boxed{4}. Wait, that is wrong. So \boxed{5}."),
    ("5", r"\boxed{4} and \boxed{5}"),
    ("4, 5", r"\boxed{4}. Wait, that is wrong. So \boxed{5}."),
    ("72", r"\boxed{7"),
    ("7", r"\boxed{72"),
    ("4", r"\boxed{4} then \boxed{5"),
    ("72", "所以答案是73。"),
    ("18", "<think>18</think><answer>9</answer>"),
    ("18", "<answer></answer> 18"),
    ("72", r"So \boxed{72"),
    ("72", r"4 + 3 so \boxed{72 and"),
]


@pytest.mark.parametrize(("reference", "answer"), SIZE_RIGHT)
def test_numbers_of_every_size_is_accepted(reward: LoadedReward, reference: str, answer: str) -> None:
    assert judge(reward, reference, answer) == 1


@pytest.mark.parametrize(("reference", "answer"), SIZE_WRONG)
def test_numbers_of_every_size_makes_no_wrong_answer_right(
    reward: LoadedReward, reference: str, answer: str
) -> None:
    assert judge(reward, reference, answer) == 0


@pytest.mark.parametrize(("reference", "answer"), NOTATION_RIGHT)
def test_what_people_type_is_accepted(reward: LoadedReward, reference: str, answer: str) -> None:
    assert judge(reward, reference, answer) == 1


@pytest.mark.parametrize(("reference", "answer"), NOTATION_WRONG)
def test_what_people_type_makes_no_wrong_answer_right(
    reward: LoadedReward, reference: str, answer: str
) -> None:
    assert judge(reward, reference, answer) == 0


@pytest.mark.parametrize(("reference", "answer"), PLACE_RIGHT)
def test_where_the_answer_stands_is_accepted(reward: LoadedReward, reference: str, answer: str) -> None:
    assert judge(reward, reference, answer) == 1


@pytest.mark.parametrize(("reference", "answer"), PLACE_WRONG)
def test_where_the_answer_stands_makes_no_wrong_answer_right(
    reward: LoadedReward, reference: str, answer: str
) -> None:
    assert judge(reward, reference, answer) == 0


@pytest.mark.parametrize(
    "reference",
    sorted({reference for reference, _ in [*SIZE_RIGHT, *NOTATION_RIGHT, *PLACE_RIGHT]})
    + [
        r"\frac{\sqrt{3}}{2}",
        r"(-\infty, 2) \cup (3, \infty)",
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
    ]
    + [
        r"x \in [1, 2]",
        r"\text{(A)}",
        "y = 2x + 1",
        r"2 + 3i",
        r"\{1, 2, 3\}",
        r"\log_2 3",
        "10!",
        r"\text{even}",
    ]
    + [r"50^\circ", r"\$32,500", r"3 \pm 2 \sqrt{2}", r"x^2 - 4x + 4 = 0", "Monday", "5 años", "是"],
)
def test_every_reference_accepts_its_gold_answer_and_its_box(reward: LoadedReward, reference: str) -> None:
    assert judge(reward, reference, reward.gold({"answer": reference}, answer_field="answer") or "") == 1
    assert judge(reward, reference, f"so it is $\\boxed{{{reference}}}$.") == 1


def test_only_what_follows_the_thinking_is_read() -> None:
    after = load_reward("math_verify", {"after": "</think>"}, where="")
    answers = [
        "a</think>18",
        "<think>18",
        "<think>18</think> I give up",
        "</think>9</think>18",
        "</think>18</think>9",
    ]
    assert [judge(after, "18", answer) for answer in answers] == [1, 0, 0, 1, 0]
    assert after.gold({"answer": "18"}, answer_field="answer") == "</think>\\boxed{18}"
    with pytest.raises(Exception, match="after is empty"):
        load_reward("math_verify", {"after": ""}, where="")


@pytest.mark.parametrize(
    "piece",
    [
        "<answer>",
        "\\boxed{",
        "{",
        "1 ",
        "9",
        "½",
        "√(",
        "小",
        "1/2 ",
        "\\boxed{1}, ",
        "1\u00a0",
        "$",
        "e5",
        "⁵",
    ],
)
def test_a_long_answer_is_judged_in_time(piece: str) -> None:
    quick = load_reward("math_verify", {"cpu_limit_s": 0.2}, where="")
    quick.warm_up()
    start_s = time.process_time()
    assert judge(quick, "72", piece * (20_000 // len(piece))) == 0
    assert time.process_time() - start_s < 1.0
