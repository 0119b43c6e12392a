"""A run listens on loopback only, and writes no secret."""

import ipaddress
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest
from fault_runs import write_project

SECRET = "hf_" + "q7Zk2" * 6


def addresses(mark: str) -> set[str]:
    """Addresses on which processes of the run listen for TCP or take UDP; they are known by a variable that
    they inherit, or descend from one that has it."""
    found: set[str] = set()
    own: set[int] = set()
    for process in psutil.process_iter():
        try:
            inherits = process.environ().get("RUN_OF_TEST") == mark
            if inherits or process.ppid() in own:
                own.add(process.pid)
                found |= {c.laddr.ip for c in process.net_connections("inet") if c.laddr and not c.raddr}
        except psutil.Error:
            continue
    return found


def is_loopback(address: str) -> bool:
    """Also of an IPv4 address on a socket for both versions, as ::ffff:127.0.0.1."""
    found = ipaddress.ip_address(address)
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


@pytest.mark.slow
def test_a_run_listens_on_loopback_only_and_writes_no_secret(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    write_project(tmp_path)
    environment = os.environ | {"RUN_OF_TEST": mark, "HF_TOKEN": SECRET, "MLFLOW_TRACKING_PASSWORD": SECRET}
    words = ("run.steps=3", "run.bundle.every=2", f"cluster.slurm.account={SECRET}")
    with (tmp_path / "out").open("w") as out:
        driver = subprocess.Popen(
            [sys.executable, "-m", "hybridrl", "launch", "run.yaml", *words],
            cwd=tmp_path,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        seen: set[str] = set()
        while driver.poll() is None:
            seen |= addresses(mark)
            time.sleep(0.5)
    assert driver.returncode == 0, (tmp_path / "out").read_text()
    assert seen and all(map(is_loopback, seen)), seen
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.parent.name == "step_000002" and path.parent.parent.name == "bundles" for path in written)
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []
