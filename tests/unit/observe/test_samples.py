"""samples.txt: rollouts as a person reads them."""

import re
from dataclasses import replace

import observe_values as values

from hybridrl.observe.samples import Columns, SampleFile, heldout_samples, question, samples_of, verdict
from hybridrl.types import Group, Prompt

COLUMNS = Columns("prompt", "answer")


def write(path, step: int, *answers: str, resume_step: int | None = None) -> None:
    group = [values.trajectory(1.0, text=text) for text in answers]
    file = SampleFile(path, resume_step=resume_step)
    file.write(step, samples_of(values.batch([group]), COLUMNS))
    file.close()


def test_only_answers_kept_as_text_are_samples() -> None:
    groups = [
        [values.trajectory(0.0), values.trajectory(1.0, text="2")],
        [values.trajectory(1.0), values.trajectory(0.0, finish="length", tokens=9, text="12")],
    ]
    first, second = samples_of(values.batch(groups), COLUMNS)
    assert (first.uid, first.prompt, first.answer) == ("train/0", "7+5=", "2")
    assert (first.reward, first.advantage) == (1.0, 0.5)
    assert (second.uid, second.reward, second.finish, second.response_tokens) == ("train/1", 0.0, "length", 9)


def test_an_advantage_per_token_is_not_shown_as_one() -> None:
    packed = values.batch([[values.trajectory(1.0, text="2")]])
    packed.advantage_N = None
    (sample,) = samples_of(packed, COLUMNS)
    assert sample.advantage is None and verdict(sample) == "reward 1.0"


def test_the_file_reads_well(tmp_path) -> None:
    write(tmp_path / "s.txt", 10, "3\n...no, 2")
    assert (tmp_path / "s.txt").read_text() == (
        "step 10   train/0   reward 1.0   advantage +0.00   stop after 2 tokens\n"
        "  prompt | 7+5=\n"
        "  answer | 3\n"
        "         | ...no, 2\n"
        "\n"
    )


def test_the_reference_and_the_parts_of_the_reward_are_shown(tmp_path) -> None:
    group = values.batch([[values.trajectory(0.5, text="3", right=0.0, close=0.5)]])
    row = {"prompt": "7+5=", "truth": {"value": "2\nor two"}}
    group.groups[0].prompt = replace(group.groups[0].prompt, row=row)
    file = SampleFile(tmp_path / "s.txt", resume_step=None)
    file.write(1, samples_of(group, Columns("prompt", "truth.value")))
    text = (tmp_path / "s.txt").read_text()
    assert "  answer | 3\n  gold   | 2\n         | or two\n  parts  | right 0, close 0.5\n" in text


def test_held_out_answers_have_no_advantage(tmp_path) -> None:
    answers = [values.trajectory(1.0, text="2"), values.trajectory(0.0)]
    row = {"prompt": "1+1=", "answer": 2}
    [sample] = heldout_samples([Group(Prompt("heldout/3", (1,), row), answers, None)], COLUMNS)
    assert (sample.uid, sample.reference, sample.advantage) == ("heldout/3", "2", None)
    file = SampleFile(tmp_path / "s.txt", resume_step=None)
    file.write(0, [sample])
    assert (
        (tmp_path / "s.txt").read_text().startswith("step 0   heldout/3   reward 1.0   stop after 2 tokens\n")
    )


def test_a_resume_cuts_off_later_steps_even_if_an_answer_looks_like_one(tmp_path) -> None:
    path = tmp_path / "s.txt"
    write(path, 1, "one\nstep 9   train/0")
    write(path, 10, "ten", resume_step=1)
    write(path, 20, "twenty", resume_step=10)
    write(path, 20, "again", resume_step=10)
    text = path.read_text()
    assert all(word in text for word in ("one", "step 9", "ten", "again")) and "twenty" not in text


def test_control_characters_of_an_answer_stay_out(tmp_path) -> None:
    write(tmp_path / "s.txt", 1, "\x1b[2J\x07é\u202e\tif x:")
    written = (tmp_path / "s.txt").read_text()
    assert re.search("é. +if x:", written) and not any(c in written for c in "\x1b\x07\u202e")


def test_a_chat_prompt_shows_its_last_message() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "7+5="}]
    assert question(Prompt("a", (1,), {"q": messages}), "q") == "7+5="
    assert question(Prompt("a", (1,), {}), "q") == ""
    shown = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    assert question(Prompt("a", (1,), {"q": shown}), "q") == "<image>what?"


def test_an_episode_shows_its_turns_and_what_was_read(tmp_path) -> None:
    transcript = (("turn 1", "4"), ("read", "+"), ("turn 2", "6"))
    one = replace(values.trajectory(1.0, text="6"), transcript=transcript, ended="done", turns=2)
    file = SampleFile(tmp_path / "s.txt", resume_step=None)
    file.write(10, samples_of(values.batch([[one]], question="="), COLUMNS))
    file.close()
    assert (tmp_path / "s.txt").read_text() == (
        "step 10   train/0   reward 1.0   advantage +0.00   done after 2 turns, 2 tokens\n"
        "  prompt | =\n"
        "  turn 1 | 4\n"
        "  read   | +\n"
        "  turn 2 | 6\n"
        "\n"
    )
