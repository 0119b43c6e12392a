"""Plays all attacks on boxes of one kind, and prints what came of each as JSON.

It is a program so that it can run as another user: python attacker.py KIND, with hybridrl on PYTHONPATH.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from attack_list import ATTACKS, FILLS_THE_DISK, HEAD, PASSES_A_LIMIT, PASSES_IN_BUBBLEWRAP

from hybridrl.errors import SandboxError
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.limits import Limits

LIMITS = Limits(memory_mb=256, processes=16, disk_mb=16, time_s=60, cpu_s=5)
AT_A_TIME = 4


async def main(kind):
    os.environ["LAB_SECRET"] = "secret of the lab"
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="lab-") as folder:
            report = await play(kind, Path(folder), bystander)
    finally:
        bystander.kill()
        bystander.wait()
    print(json.dumps(report))


async def play(kind, folder, bystander):
    sockets, fact = sockets_and_facts(folder, bystander)
    sibling = await Box.start(kind, LIMITS)
    fact["sibling"] = sibling._started.process.pid
    results, traces = {}, []
    todo = [(name, code, {}) for name, code in ATTACKS.items()]
    limits = PASSES_A_LIMIT | (PASSES_IN_BUBBLEWRAP if kind == "bubblewrap" else {})
    todo += [(name, code, options) for name, (code, options, _) in limits.items()]
    alone = [[(name, code, {})] for name, code in FILLS_THE_DISK.items()]
    head = f"fact = {fact!r}\n{HEAD}\n"
    await asyncio.gather(*(work(kind, head, part, results, traces) for part in (*[todo] * AT_A_TIME, *alone)))
    alive = (await sibling.python("40 + 2")).text
    await sibling.close()
    sockets["udp"].setblocking(False)
    return {
        "results": results,
        "sibling": alive,
        "bystander": bystander.poll() is None,
        "open_file": Path(fact["open_file"]).read_text(),
        "open_folder": os.listdir(fact["open_folder"]),
        "received": received(sockets["udp"]),
        "left": left_running(traces),
        "folders": [folder for _, folder in traces if folder and os.path.exists(folder)],
    }


async def work(kind, head, todo, results, traces):
    """Play attacks until there are no more, in one box as long as it serves on."""
    box = None
    while todo:
        name, code, options = todo.pop(0)
        if box is None or box.closed:
            box = await Box.start(kind, LIMITS)
            traces.append((box._started.order["user"], box._started.folder))
        results[name] = await one(box, head + code, options)
    if box:
        await box.close()


async def one(box, code, options):
    """How an attack ended, what it wrote, and whether its box serves on."""
    try:
        result = await box.script(code, **options)
        found = {"ended": result.ended, "text": result.text[-2000:]}
        return found | {"serves on": (await box.python("6 * 7")).text}
    except SandboxError as error:
        return {"ended": "gone", "text": str(error), "serves on": ""}


def sockets_and_facts(folder, bystander):
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    path, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    path.bind(str(folder / "socket"))
    abstract.bind(f"\0hybridrl-lab-{os.getpid()}")
    for one_socket in (path, abstract):
        one_socket.listen()
    folder.chmod(0o755)
    home = folder / "home"
    home.mkdir()
    (home / "key").write_text("private")
    open_folder = folder / "open"
    open_folder.mkdir()
    open_folder.chmod(0o777)
    open_file = open_folder / "file"
    open_file.write_text("as it was")
    open_file.chmod(0o666)
    fact = {
        "tcp": tcp.getsockname()[1],
        "udp": udp.getsockname()[1],
        "path_socket": str(folder / "socket"),
        "abstract": f"hybridrl-lab-{os.getpid()}",
        "home": str(home),
        "home_file": str(home / "key"),
        "open_folder": str(open_folder),
        "open_file": str(open_file),
        "readable": sys.modules["hybridrl.sandbox.inside.frames"].__file__,
        "owner": os.getpid(),
        "bystander": bystander.pid,
        "disk": "/dev/" + (os.listdir("/sys/block") or ["sda"])[0],
    }
    return {"tcp": tcp, "udp": udp, "path": path, "abstract": abstract}, fact


def received(udp):
    try:
        return udp.recv(10).decode()
    except BlockingIOError:
        return ""


def left_running(traces):
    """Processes of boxes that still run: those of a box's user, or in its folder."""
    users, folders = {user for user, _ in traces if user}, {folder for _, folder in traces if folder}
    give_up, found = time.monotonic() + 30, [""]
    while found and time.monotonic() < give_up:
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (
                    path.stat().st_uid in users
                    or os.readlink(path / "cwd").removesuffix(" (deleted)") in folders
                ):
                    found.append((path / "status").read_text().splitlines()[0])
            except OSError:
                pass
        time.sleep(0.05 if found else 0)
    return found


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
