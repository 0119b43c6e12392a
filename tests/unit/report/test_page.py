"""The page of a run: what it shows, what it never does, how large it gets."""

import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import report_values as values

from hybridrl.errors import RunFolderError
from hybridrl.report.page import render, write
from hybridrl.report.run_data import read_run

EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)>\x1b[31mred\x1b]0;title\x07\u202ereversed'


class Parts(HTMLParser):
    """Elements of a page, their attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self._inside = "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag) -> None:
        self._inside = ""

    def handle_data(self, data) -> None:
        self.text += data if self._inside not in ("script", "style") else ""


def page(folder: Path, **changes) -> Parts:
    return Parts(render(read_run(values.run_folder(folder / "a", **changes))))


def test_a_page_shows_what_the_run_has(tmp_path: Path) -> None:
    found = page(tmp_path, rollouts=[values.rollout()])
    sections = [attrs["id"] for tag, attrs in found.elements if tag == "section"]
    assert sections == [
        "overview",
        "curves",
        "phases",
        "engines",
        "swap",
        "rollouts",
        "plan",
        "config",
        "metrics",
    ]
    links = [attrs["href"] for tag, attrs in found.elements if tag == "a"]
    assert links == ["#main", *(f"#{name}" for name in sections)]
    assert "0.100 → 0.500" in found.text and "algorithm.estimator.name" in found.text


def test_a_page_has_the_advice_with_its_changes(tmp_path: Path) -> None:
    found = page(tmp_path, metrics={"rollout/zero_std_all": 0.8})
    assert "all solved" in found.text and "algorithm.dynamic_sampling={}" in found.text


def test_a_page_loads_nothing_and_names_no_address(tmp_path: Path) -> None:
    text = write(read_run(values.run_folder(tmp_path / "a", rollouts=[values.rollout()]))).read_text()
    assert not re.search(r"https?://|@import|url\(|<link|<iframe|<img|fetch\(|XMLHttp", text)
    assert "default-src 'none'" in text
    assert [attrs.get("src") for tag, attrs in Parts(text).elements if tag == "script"] == [None]


@pytest.mark.parametrize(
    "place",
    [
        {"rollouts": [values.rollout(uid=EVIL, gold=EVIL, finish=EVIL, why=[EVIL], parts={EVIL: 1.0})]},
        {
            "rollouts": [
                values.rollout(tokens=[[EVIL, 0, None, None], [EVIL, 1, 0.5, 0.1], [EVIL, 2, None, None]])
            ]
        },
        {"metrics": {f"reward/{EVIL}/mean": 1.0, f"goodput/{EVIL}": 0.1}},
        {"algorithm__preset": EVIL.replace("\x1b", "")},
    ],
    ids=["facts", "tokens", "metrics", "config"],
)
def test_text_of_models_and_data_is_shown_and_does_nothing(tmp_path: Path, place: dict) -> None:
    plain, found = page(tmp_path / "plain"), page(tmp_path / "evil", **place)
    tags = {tag for tag, _ in found.elements}
    assert "img" not in tags and sum(tag == "script" for tag, _ in found.elements) == 1
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
    assert "alert(1)" in found.text and "alert(1)" not in plain.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", found.text)


def test_tokens_say_their_advantage_and_difference(tmp_path: Path) -> None:
    tokens = [["2", 1, 0.5, -0.25], ["3", 1, -1.0, None], ["4", 1, 0.0, 0.25]]
    found = page(tmp_path, rollouts=[values.rollout(tokens=tokens)])
    shown = [
        (attrs["title"], attrs["class"])
        for tag, attrs in found.elements
        if "t " in (attrs.get("class") or "")
    ]
    assert shown == [
        ("advantage +0.5, difference -0.25", "t a2 d-4"),
        ("advantage -1", "t a-4 d0"),
        ("advantage +0, difference +0.25", "t a0 d4"),
    ]


def test_a_run_that_has_taken_no_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run that has taken a step"):
        read_run(tmp_path)


def test_a_run_of_one_step_has_a_page(tmp_path: Path) -> None:
    assert "a, 1 step" in page(tmp_path, steps=1, heldout=[]).text


def test_metrics_that_are_no_numbers_are_left_out_and_counted(tmp_path: Path) -> None:
    found = page(tmp_path, metrics={"actor/entropy": lambda step: float("nan") if step == 3 else 0.5})
    assert "metrics that are no number1" in found.text


def test_a_long_run_has_a_small_page(tmp_path: Path) -> None:
    many = {f"environment/e/m{i}": lambda step, i=i: (step * (i + 7)) % 101 / 7 for i in range(60)}
    long = [values.rollout(step, tokens=[["word ", 1, 0.5, 1e-6]] * 600) for step in range(10, 10_000, 10)]
    folder = values.run_folder(tmp_path / "a", steps=10_000, metrics=many, rollouts=long)
    began = time.process_time()
    size = write(read_run(folder)).stat().st_size
    assert size < 5e6 and time.process_time() - began < 20  # 2 s on an idle machine


def test_pictures_of_a_prompt_are_shown_and_nothing_else_as_one(tmp_path: Path) -> None:
    good = "data:image/jpeg;base64,AAAA"
    bad = [
        "https://evil.example/a.png",
        'data:image/jpeg;base64,AA" onerror="alert(1)',
        "data:text/html,AAAA",
    ]
    found = page(tmp_path, rollouts=[values.rollout(pictures=[good, *bad, good])])
    shown = [attrs for tag, attrs in found.elements if tag == "img"]
    assert [attrs["src"] for attrs in shown] == [good, good]
    assert [attrs["alt"] for attrs in shown] == [f"picture {i} of 2 of the prompt" for i in (1, 2)]
