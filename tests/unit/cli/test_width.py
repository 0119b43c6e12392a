"""What commands print fits a terminal of 80 columns, and stays one line for a program."""

import json
from pathlib import Path

import pytest

from hybridrl import cli
from hybridrl.cli import console
from hybridrl.config.kinds import load_any
from hybridrl.config.load import values
from hybridrl.export.command import TOLERANCE
from hybridrl.verify import report
from hybridrl.verify.compare import Difference
from hybridrl.verify.findings import Finding
from hybridrl.verify.layouts import Row

ROOT = Path(__file__).parents[3]
CONFIGS = ["configs/quickstart.yaml", "configs/grpo_qwen72b.yaml"]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(ROOT)


def longest(text: str) -> int:
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize(
    "line",
    [
        *(f"plan {config}" for config in CONFIGS),
        *(f"config show {config}" for config in CONFIGS),
        "plan configs/quickstart.yaml actor.parallel.tp=64",
        "plan configs/sft_arithmetic.yaml",
        "config check configs/quickstart.yaml",
        "config check configs/grpo_qwen72b.yaml",
        "config check configs/sft_arithmetic.yaml",
        "config explain",
        "config explain actor",
        "config explain actor.fp8",
        "config explain algorithm.preset",
        "algo list",
        "algo explain grpo",
        "algo explain dapo",
        "algo explain ppo_clip",
        "doctor",
    ],
)
def test_lines_fit_80_columns(narrow: None, capsys: Captured, line: str) -> None:
    code = cli.main(line.split())
    said = capsys.readouterr()
    assert code != 1, said.err  # 2: refused, which is said too; 1: a crash, of which nothing may be said
    assert longest(said.out + said.err) <= 80


def test_init_fits_80_columns(
    narrow: None, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", "some-organisation/some-model-of-7-billion-parameters", "--data", "d.jsonl"]
    assert cli.main(["init", "grpo", *words]) == 0
    said = capsys.readouterr()
    assert "not here" in said.out and longest(said.out + said.err) <= 80


def test_what_export_says_fits_80_columns(narrow: None, capsys: Captured) -> None:
    console.say("wrote", "runs/a-run-with-quite-a-long-name/exports/step_000120, the policy of step 120")
    console.say(
        "verified",
        f"largest difference of a log-probability 1.2e-6 nats over 512 tokens, {TOLERANCE:g} allowed",
    )
    assert longest(capsys.readouterr().out) <= 80


def test_a_row_of_verify_fits_80_columns(narrow: None, capsys: Captured) -> None:
    parameter = "decoder.layers.0.self_attention.linear_qkv.layer_norm_weight"
    found = Difference(loss=1e-9, grad_norm=1e-9, gradient=1e-3, parameter=parameter)
    console.show(report.line(Finding(Row("tp2,pp2vpp2", frozenset()), found, "")), indent=4)
    said = capsys.readouterr().out
    assert longest(said) <= 80 and parameter in said


@pytest.mark.parametrize("config", [*CONFIGS, "configs/sft_arithmetic.yaml"])
def test_a_config_that_is_shown_narrow_is_the_same(
    narrow: None, capsys: Captured, tmp_path: Path, config: str
) -> None:
    text = "data.system_prompt=" + json.dumps("# Think: then, [answer] 'so' " * 9)
    assert cli.main(["config", "show", config, text, "data.chat_template=model"]) == 0
    said = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(said)
    command, meant = load_any(None, Path(config), [text, "data.chat_template=model"])
    assert longest(said) <= 80
    assert values(load_any(command, tmp_path / "again.yaml")[1].config) == values(meant.config)


def test_a_wide_terminal_has_wide_lines(
    narrow: None, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    cli.main(["plan", CONFIGS[1]])
    said = capsys.readouterr().out
    assert 80 < longest(said) <= 200 and "grads+optim" in said


def test_without_a_terminal_a_line_stays_one_line(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    console.say("heading", "word " * 100)
    assert capsys.readouterr().out.count("\n") == 1


def test_words_and_units_stay_whole(narrow: None, capsys: Captured) -> None:
    console.say("time", "x" * 65 + " 0.41 s and a/very/long/path/" + "y" * 90)
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines[1:]] == ["0.41 s and", "a/very/long/path/" + "y" * 90]
    assert all(line.startswith(" " * 10) for line in lines[1:])
