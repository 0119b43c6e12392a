"""Stand-ins for CUDA-only packages: in every interpreter of the environment, and only where needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hybridrl.errors import ResourceError
from hybridrl.hosts import standins
from hybridrl.hosts.standins import sgl_kernel
from hybridrl.hosts.standins.__main__ import main

ROOT = Path(__file__).parents[3]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment's site-packages, empty."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.setattr(standins.sysconfig, "get_path", lambda name: str(folder))
    return folder


def run(folder, program, *paths):
    """In a new interpreter that has nothing but the .pth files of `folder`, and `paths` to import from."""
    start = f"import site, sys; sys.path[1:1] = {list(map(str, paths))!r}; site.addsitedir({str(folder)!r})\n"
    command = [sys.executable, "-S", "-E", "-c", start + program]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def stub_torch(folder, *, cuda):
    """A torch that knows one thing."""
    (folder / "torch").mkdir(parents=True)
    available = f"class cuda:\n    is_available = staticmethod(lambda: {cuda})\nclass Tensor: pass\n"
    (folder / "torch/__init__.py").write_text(available)
    return folder


WHERE = "import sgl_kernel; print(sgl_kernel.__file__)"


def test_a_new_interpreter_finds_the_stand_in(environment, tmp_path):
    standins.install()
    done = run(environment, WHERE, stub_torch(tmp_path / "cpu", cuda=False))
    assert done.stdout.strip() == sgl_kernel.__file__, done.stderr


def test_an_installed_kernel_package_wins(environment, tmp_path):
    standins.install()
    (environment / "sgl_kernel.py").write_text("")
    done = run(environment, WHERE, stub_torch(tmp_path / "cpu", cuda=False))
    assert done.stdout.strip() == str(environment / "sgl_kernel.py")


def test_there_is_no_stand_in_on_a_machine_with_a_gpu(environment, tmp_path):
    standins.install()
    done = run(environment, WHERE, stub_torch(tmp_path / "gpu", cuda=True))
    assert "No module named 'sgl_kernel'" in done.stderr


def test_the_start_of_an_interpreter_imports_nothing_more(environment):
    standins.install()
    loaded = "print(sorted(m for m in sys.modules if not m.startswith('_')))"
    without = run(environment.parent, loaded)
    assert run(environment, loaded).stdout == without.stdout
    assert "torch" not in without.stdout


def test_the_line_is_idle_when_the_project_is_gone(environment):
    standins.install()
    line = standins.pth_path().read_text().replace("hook.py", "moved.py")
    standins.pth_path().write_text(line)
    done = run(environment, "print(len(sys.meta_path))")
    assert done.stderr == "" and done.stdout == run(environment.parent, "print(len(sys.meta_path))").stdout


def test_install_check_uninstall(environment, capsys):
    assert not standins.is_installed() and main(["check"]) == 1
    assert main(["install"]) == 0
    assert standins.is_installed() and standins.is_active()
    assert main(["uninstall"]) == 0
    assert not standins.is_installed() and list(environment.iterdir()) == []
    assert main(["uninstall"]) == 0
    assert main(["repair"]) == 2
    assert "install | check | uninstall" in capsys.readouterr().err


def test_another_copy_of_the_project_counts_as_not_installed(environment):
    standins.install()
    standins.pth_path().write_text(standins.pth_path().read_text().replace("/hook.py", "/elsewhere/hook.py"))
    assert not standins.is_installed()


def test_an_environment_that_cannot_be_written_is_named(monkeypatch):
    monkeypatch.setattr(standins.sysconfig, "get_path", lambda name: "/nowhere/site-packages")
    with pytest.raises(ResourceError, match="cannot write /nowhere/site-packages"):
        standins.install()


def test_activating_twice_adds_nothing():
    standins.activate()
    before = list(sys.meta_path)
    standins.activate()
    assert sys.meta_path == before


def test_torchvision_and_the_kernels_import_in_this_environment():
    standins.activate()
    program = "from hybridrl.hosts import standins; standins.activate(); import torchvision, sgl_kernel"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_new_cache_slots_go_to_their_requests():
    pool = torch.zeros(3, 6, dtype=torch.int32)
    request, start, end = (torch.tensor(x) for x in ([2, 0], [1, 0], [4, 2]))
    sgl_kernel.assign_req_to_token_pool_cpu(request, pool, start, end, torch.tensor([7, 8, 9, 5, 6]), 6)
    assert pool.tolist() == [[5, 6, 0, 0, 0, 0], [0] * 6, [0, 7, 8, 9, 0, 0]]


def test_operations_without_a_stand_in_import_and_refuse_to_run():
    with pytest.raises(NotImplementedError, match="verify_tree_greedy_cpu"):
        sgl_kernel.verify_tree_greedy_cpu(1, 2)
    with pytest.raises(AttributeError):
        print(sgl_kernel.fp8_gemm)
