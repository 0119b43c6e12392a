"""Two sessions of a run into MLflow, W&B and TensorBoard, in a process of their own, as a driver has it.

Called as: python sink_sessions.py RUNS_FOLDER SECRET...
Prints the attempts to reach a host, warnings, and the last lines of each session, as JSON.
"""

import io
import json
import math
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import observe_values as values

from hybridrl.config.load import LoadedConfig, parse_as
from hybridrl.config.run_folder import RunFolder
from hybridrl.config.schema import Config
from hybridrl.observe.observer import RunObserver
from hybridrl.observe.terminal import Terminal

CONFIG = """\
model: marker/model
data: {{train: d.jsonl}}
reward:
  name: "my_lab.judge:Judge"
  api_key: {secrets[0]}
  url: "https://me:{secrets[1]}@judge.example/v1"
  note: {secrets[2]}
run: {{name: a, folder: {folder}, steps: 3, seed: 7}}
observe: {{sinks: [mlflow, wandb, {{name: tensorboard}}]}}
"""


def proxy() -> tuple[str, list[str]]:
    """An address that programs take for the way to other hosts, and what came there."""
    server, seen = socket.create_server(("127.0.0.1", 0)), []

    def serve() -> None:
        while True:
            connection, _ = server.accept()
            seen.append(connection.recv(200).decode("latin-1"))
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}", seen


def first(loaded: LoadedConfig, screen: io.StringIO) -> None:
    """Stopped by a person after two steps; the second has a metric that is no number."""
    with RunFolder.create(loaded):
        try:
            with observer(loaded, screen, None) as observe:
                observe.evaluation(0, {"val-core/digits/reward/mean_at_1": 0.125})
                step(observe, 1, loss=0.1)
                step(observe, 2, loss=math.nan)
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass


def second(loaded: LoadedConfig, screen: io.StringIO) -> None:
    """Goes on from the checkpoint of step 1, and comes to its end."""
    with RunFolder.open_for_resume(loaded), observer(loaded, screen, 1) as observe:
        step(observe, 2, loss=0.25)
        step(observe, 3, loss=1 / 3)
        observe.evaluation(3, {"val-core/digits/reward/mean_at_1": 0.75})
        observe.finish({}, [])


def observer(loaded: LoadedConfig, screen: io.StringIO, resume_step: int | None) -> RunObserver:
    made = RunObserver(loaded.config, Terminal(screen), resume_step=resume_step, num_devices=1)
    made.keep(made.folder / "resolved.yaml")
    return made


def step(observe: RunObserver, number: int, **metrics: float) -> None:
    batch = values.batch([[values.trajectory(1.0), values.trajectory(0.0)]], step=number)
    observe.step(number, batch, [values.report(number, **metrics)], values.SWAP, {})


def play(runs: Path, secrets: list[str]) -> dict[str, Any]:
    text = CONFIG.format(folder=runs, secrets=secrets)
    loaded, screen = parse_as(Config, text, "my.yaml"), io.StringIO()
    first(loaded, screen)
    second(loaded, screen)
    return {"screen": screen.getvalue()}


if __name__ == "__main__":
    address, attempts = proxy()
    os.environ |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), address)
    print(json.dumps(play(Path(sys.argv[1]), sys.argv[2:]) | {"attempts": attempts}))
