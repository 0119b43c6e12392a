"""A download says how many bytes of how many are here."""

import json
import os
import subprocess
import sys

from hub_values import CONFIG, served

SCRIPT = """
import json
from hybridrl.models import hub
told = []
hub.fetch("acme/tiny", where="a", advance=lambda done, total: told.append([done, total]))
print(json.dumps(told))
"""


def test_a_download_counts_its_bytes_and_shows_no_bars(tmp_path):
    config = json.dumps(CONFIG).encode()
    files = {"config.json": config, "model.safetensors": b"w" * 100_000, "tokenizer.json": b"{}"}
    with served({"acme/tiny": files}) as (address, _):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told[-1][0] == told[-1][1] >= 100_000 and "%" not in done.stderr
    assert [now for now, _ in told] == sorted(now for now, _ in told)
