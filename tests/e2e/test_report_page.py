"""The report in a real browser: light, dark, on a phone, by keyboard, for axe-core, and with an answer that
attacks it."""

import json
import runpy
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import report_values as values

from hybridrl.report.live import open_server
from hybridrl.report.page import write
from hybridrl.report.run_data import read_run

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-browser" / "bin" / "python"
EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(2)><svg onload=alert(3)>\x1b[31mred\x1b]0;x\x07'

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON.exists() or not shutil.which("chromium"), reason="make report-shots makes .venv-browser"
    ),
]


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("browser")
    tokens = [[EVIL, 0, None, None], ["good ", 1, 0.5, -1e-6], [EVIL, 1, -0.5, 2e-6], [EVIL, 2, None, None]]
    rollouts = [values.rollout(step, tokens=tokens, gold=EVIL, uid=EVIL) for step in (1, 10)]
    run = values.run_folder(folder / "a", rollouts=rollouts, metrics={f"reward/{EVIL}/mean": 0.5})
    page = write(read_run(run))
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("browser_visit.py"), page, folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all((folder / f"report-{name}.png").stat().st_size > 10_000 for name in ("light", "dark", "phone"))
    return json.loads(done.stdout)


NAMES = ("light", "dark", "phone")


@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_no_violation(views: dict[str, dict[str, Any]], name: str) -> None:
    assert views[name]["violations"] == []


@pytest.mark.parametrize("name", NAMES)
def test_what_a_model_wrote_does_nothing_and_nothing_is_loaded(
    views: dict[str, dict[str, Any]], name: str
) -> None:
    assert views[name]["trouble"] == [] and views[name]["asked"] == []


def test_dark_is_dark_and_nothing_is_wider_than_the_screen(views: dict[str, dict[str, Any]]) -> None:
    assert views["light"]["background"] == "rgb(255, 255, 255)"
    assert views["dark"]["background"] == "rgb(15, 19, 25)"
    assert [views[name]["width"] for name in NAMES] == [1200, 1200, 390]


@pytest.mark.parametrize("name", NAMES)
def test_the_keyboard_reaches_everything(views: dict[str, dict[str, Any]], name: str) -> None:
    keyboard = views[name]["keyboard"]
    last, before, home = keyboard["read"]
    assert keyboard["first"] == "skip"
    assert (last.split(":")[0], before.split(":")[0], home.split(":")[0]) == ("step 20", "step 19", "step 1")
    assert "held out 0.5 (step 20)" in last and "held out 0.1 (step 0)" in home
    assert keyboard["theme"] == ("light" if name == "dark" else "dark")


def test_the_picture_of_the_terminal_shows_the_table_and_where_the_run_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    numbers: dict[str, values.Value] = {
        "response_length/mean": 2.0,
        "actor/lr": 1e-3,
        "timing_s/update_weights": 0.01,
    }
    numbers["training/global_step"] = float
    last = values.rollout(10, finish="stop", tokens=[["7+5=", 0, None, None], ["2\x1b[31m", 1, 0.5, 0.0]])
    run = values.run_folder(tmp_path / "a", steps=80, metrics=numbers, rollouts=[last])
    draw: Any = runpy.run_path(str(ROOT / "docs/pictures/terminal.py"))["page"]
    page, picture = tmp_path / "terminal.html", tmp_path / "terminal.png"
    page.write_text(draw(run, Path("configs/quickstart.yaml")))
    script = Path(__file__).with_name("browser_picture.py")
    done = subprocess.run([PYTHON, script, page, picture], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 10_000
    shown = done.stdout.splitlines()
    assert shown[0] == "$ hybridrl launch configs/quickstart.yaml"
    assert [line for line in shown if line.split()[:2] == ["45", "0.69"]], done.stdout
    assert [line for line in shown if " 48/80 " in line and "generating" in line]
    assert [line for line in shown if '"7+5="' in line and "reward 1.0" in line] and "\x1b" not in done.stdout


def test_a_live_page_follows_the_run_without_being_loaded_again(tmp_path: Path) -> None:
    run = values.run_folder(tmp_path / "a")
    server, address = open_server(run)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    record = {"kind": "evaluation", "step": 21, "time": 21.0, "wall_s": 21.0}
    line = json.dumps({**record, "val-core/digits/reward/mean_at_1": 0.75})
    script = Path(__file__).with_name("browser_live.py")
    done = subprocess.run(
        [PYTHON, script, address, run / "metrics.jsonl", line], capture_output=True, text=True
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "0.100 → 0.750" in found["after"] and found["readout"].startswith("step 20: ")
    assert (found["mark"], found["open"], found["state"]) == (7, True, "live")
    assert found["scrolled"] == 300
    assert found["violations"] == [] and found["trouble"] == []
