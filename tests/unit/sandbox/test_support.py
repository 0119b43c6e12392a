"""What holds on a machine that refuses namespaces, as containers usually do; and the attacks are real."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from attack_list import ATTACKS, HEAD

ROOT = Path(__file__).parents[3]

REFUSING = """
import asyncio, ctypes, json
from hybridrl.sandbox.inside import confine, filter
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
confine.apply_filter(filter._Filter().refuse(["unshare"]).common().finish())
from hybridrl.sandbox.local import LocalSandbox
from hybridrl.sandbox.support import inspect

async def main():
    support = await inspect()
    async with LocalSandbox() as sandbox:
        box = await sandbox.take()
        text = (await box.python("6 * 7")).text
    return [support.kind, support.why, text, box.kind]

print(json.dumps(asyncio.run(main())))
"""


def test_where_namespaces_are_refused_landlock_holds_and_says_what_refused_bubblewrap():
    kind, why, text, used = json.loads(run(REFUSING))
    assert (kind, text, used) == ("landlock", "42", "landlock")
    assert "Operation not permitted" in why or "No permissions" in why


ASKING = """
import asyncio, json
from hybridrl.sandbox.support import inspect
support = asyncio.run(inspect())
print(json.dumps([support.kind, support.why]))
"""


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="it takes a right from root")
def test_root_without_the_right_to_mount_gets_landlock():
    """In a user namespace it would stay the owner of root's files, and could write to /proc/sys."""
    kind, why = json.loads(run(ASKING, before=("setpriv", "--bounding-set=-sys_admin")))
    assert kind == "landlock" and "CAP_SYS_ADMIN" in why


POSSIBLE = [
    "tcp",
    "udp",
    "path socket",
    "abstract socket",
    "/etc/shadow",
    "another user's home",
    "environment",
]
POSSIBLE += ["environment of the owner", "write outside", "overwrite outside", "truncate outside"]
POSSIBLE += ["mode outside", "times outside", "symbolic link", "hard link", "memory file", "kill a bystander"]
POSSIBLE += [
    "signal by ownership",
    "limits of the owner",
    "priority of others",
    "user namespace",
    "memory bomb",
]


@pytest.mark.skipif(os.geteuid() != 0, reason="some attacks need root outside a box too")
def test_the_attacks_succeed_outside_a_box(tmp_path):
    code = f"""
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
os.environ["LAB_SECRET"] = "x"
import attacker
from attack_list import ATTACKS, HEAD

def forked(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid

def attack(code):
    os.dup2(os.open("written", os.O_CREAT | os.O_WRONLY), 1)
    sys.stdout = open(1, "w")
    try:
        exec(code, dict(__name__="__main__"))
    finally:
        sys.stdout.flush()

class Bystander:
    def __init__(self):
        self.pid = forked(lambda: time.sleep(1000))

escaped = []
for name in {POSSIBLE!r}:
    folder = Path({str(tmp_path)!r}, str(len(escaped)))
    folder.mkdir()
    os.chdir(folder)
    bystander, owner = Bystander(), Bystander()
    sockets, fact = attacker.sockets_and_facts(folder, bystander)
    code = f"fact = {{fact | dict(owner=owner.pid)!r}}\\n{{HEAD}}\\n{{ATTACKS[name]}}"
    os.waitpid(forked(lambda: attack(code)), 0)
    escaped.append([name, "ESCAPED" in (folder / "written").read_text()])
    for one in bystander, owner:
        os.kill(one.pid, signal.SIGKILL)
        os.waitpid(one.pid, 0)
    for one in sockets.values():
        one.close()
print(json.dumps(escaped))
"""
    escaped = json.loads(run(code))
    assert [found for found in escaped if not found[1]] == []
    assert len(escaped) == len(POSSIBLE) and set(POSSIBLE) <= set(ATTACKS) and HEAD


def run(code, *, before=()):
    paths = ":".join([str(ROOT), *(p for p in sys.path if p.endswith("site-packages"))])
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": paths}
    command = [*before, sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
