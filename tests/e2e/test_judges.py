"""Runs whose answers are judged by a service and by a model in an engine of the run; both fail at times."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from hybridrl.models.make import make_model

ROOT = Path(__file__).parents[2]
PARTS: dict[str, Any] = {
    "exact": {"name": "exact_match", "weight": 1.0},
    "length": {
        "name": "judge",
        "weight": 0.1,
        "prompt": "{prompt}{response}=",
        "parse": "number",
        "most": 1e9,
    },
}


def config(folder: Path, url: str, **reward: Any) -> str:
    service = {"name": "http", "weight": 0.01, "url": url, "retries": 1, "request_timeout_s": 0.5}
    parts = PARTS | {"service": service}
    text = {
        "model": {"path": "model", "make": "hybridrl.models.tiny:qwen3_arithmetic"},
        "data": {
            "train": {"task": "last_digit", "part": "train"},
            "heldout": {"task": "last_digit", "part": "heldout"},
            "chat_template": "none",
        },
        "judge": {
            "path": "judge",
            "chat_template": "none",
            "max_prompt_tokens": 64,
            "max_response_tokens": 8,
            "kv_cache_tokens": 4096,
        },
        "reward": {"name": "weighted_sum", "parts": parts, "max_unjudged": 1.0, **reward},
        "algorithm": {"preset": "grpo", "samples_per_prompt": 4},
        "batch": {"prompts_per_step": 16},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8},
        "run": {"name": "judged", "steps": 3, "evaluate_every": 0, "export": False},
    }
    make_model("hybridrl.models.tiny:qwen3_arithmetic", folder / "judge", 5, where="judge.path")
    (folder / "run.yaml").write_text(yaml.safe_dump(text))
    return "run.yaml"


class Moody(BaseHTTPRequestHandler):
    """Every tenth request hangs, gets a 500, garbage, or a late answer."""

    count = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        with Moody.lock:
            Moody.count += 1
            mood = Moody.count % 10
        items = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["items"]
        if mood == 0:
            threading.Event().wait(1.0)
        if mood == 1:
            return self._say(500, b"boom")
        if mood == 2:
            return self._say(200, b"<html>")
        if mood == 3:
            threading.Event().wait(0.2)
        self._say(200, json.dumps({"results": [len(item["answer"]) for item in items]}).encode())

    def _say(self, status: int, body: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # who asked is gone
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def service() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/score"
    finally:
        server.shutdown()


def launched(folder: Path, file: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hybridrl", "launch", file],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_a_run_goes_on_with_judges_that_fail_at_times(tmp_path: Path) -> None:
    with service() as url:
        process = launched(tmp_path, config(tmp_path, url))
    assert process.returncode == 0, process.stdout + process.stderr
    lines = (tmp_path / "runs/judged/metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "step"]
    assert len(steps) == 3
    assert sum(row["judge/service/retries"] for row in steps) > 5
    assert sum(row["judge/service/requests"] for row in steps) > 150
    assert all("reward/length/mean" in row for row in steps)
    unjudged = [row.get("reward/unjudged", 0.0) for row in steps]
    assert 0 < sum(unjudged) < 3 * 64
    kinds = {name.rpartition("/")[2] for row in steps for name in row if name.startswith("reward/unjudged/")}
    assert "no_verdict" in kinds  # a random model says no number at times


@pytest.mark.slow
def test_a_run_ends_with_the_first_cause_if_the_config_says_so(tmp_path: Path) -> None:
    process = launched(tmp_path, config(tmp_path, "http://127.0.0.1:9/score", max_unjudged=0.0))
    assert process.returncode == 2
    said = process.stdout + process.stderr
    assert "the judge gave no reward to" in said and "reward.max_unjudged = 0; the first: " in said
