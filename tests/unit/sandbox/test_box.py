"""A box as its owner uses it: programs, sessions, files, limits, and boxes that lie."""

import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from hybridrl.errors import SandboxError
from hybridrl.sandbox import box as box_module
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.inside.frames import pack
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.local import LocalSandbox
from hybridrl.sandbox.start import Started

KINDS = ("bubblewrap", "landlock")
LIMITS = Limits(memory_mb=256, disk_mb=8, time_s=60)


def in_box(kind, play, limits=LIMITS):
    """Play with a box."""

    async def go():
        async with await Box.start(kind, limits) as box:
            return await play(box)

    return asyncio.run(go())


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_a_program_gets_files_and_stdin_and_gives_its_output_and_code(kind):
    async def play(box):
        code = (
            "import sys; print(open('a/b.txt').read(), sys.stdin.read()); sys.stderr.write('x\\n'); exit(3)"
        )
        return await box.run(["python3", "-c", code], files={"a/b.txt": b"file"}, stdin=b"in" * 100_000)

    result = in_box(kind, play)
    assert (result.ended, result.code, result.stderr) == ("error", 3, b"x\n")
    assert result.stdout == b"file " + b"in" * 100_000 + b"\n"
    assert result.text.endswith("x\n[exit code 3]")


def test_an_owner_with_thousands_of_open_files_has_boxes_too(kind):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2048), max(before[1], 2048)))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert in_box(kind, lambda box: box.run(["python3", "-c", "print(1)"])).stdout == b"1\n"
    finally:
        for descriptor in opened:
            os.close(descriptor)


def test_a_program_that_does_not_exist_says_so(kind):
    async def play(box):
        return await box.run(["no-such-program"])

    result = in_box(kind, play)
    assert result.code == 127 and "cannot run no-such-program" in result.text


def test_a_session_keeps_its_state_and_prints_its_last_value(kind):
    async def play(box):
        texts = [
            (await box.python(code)).text
            for code in ("x = 6", "x * 7", "print(1); x", "x;", "def f(): 1 / 0")
        ]
        return texts, await box.python("f()")

    texts, failed = in_box(kind, play)
    assert texts == ["", "42", "1\n6", "6", ""]
    assert failed.ended == "error" and not failed.lost
    assert failed.text.startswith("Traceback") and "1 / 0" in failed.text and "session.py" not in failed.text


def test_a_session_that_takes_too_long_is_interrupted_and_keeps_its_state(kind):
    async def play(box):
        await box.python("x = 1")
        return await box.python("while True: pass", time_s=0.3), (await box.python("x")).text

    result, text = in_box(kind, play)
    assert (result.ended, result.lost, text) == ("time", False, "1")
    assert "KeyboardInterrupt" in result.text and "limit of time" in result.text


def test_a_session_that_goes_on_is_ended_and_says_that_its_state_is_gone(kind):
    async def play(box):
        await box.python("import signal; x = signal.signal(signal.SIGINT, signal.SIG_IGN)")
        return await box.python("while True: pass", time_s=0.3), (await box.python("x")).text

    result, text = in_box(kind, play)
    assert (result.ended, result.lost) == ("time", True)
    assert "variables are gone" in result.text and "NameError" in text


@pytest.mark.parametrize(
    ("code", "ended"),
    [("import os; os._exit(0)", "error"), ("import os; os.abort()", "signal"), ("exit(3)", "error")],
)
def test_a_session_that_ends_itself_is_a_failure_and_the_next_begins_anew(kind, code, ended):
    async def play(box):
        return await box.python(code), (await box.python("1 + 1")).text

    result, text = in_box(kind, play)
    assert (result.ended, text) == (ended, "2")


def test_a_session_stands_still_between_its_calls(kind):
    code = """
import threading, time
count = 0
def work():
    global count
    while True:
        count += 1
        time.sleep(0.001)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.05)"""

    async def play(box):
        await box.python(code)
        first = int((await box.python("count")).text)
        await asyncio.sleep(0.3)
        return first, int((await box.python("count")).text)

    first, second = in_box(kind, play)
    assert 0 < first <= second < first + 100


def test_files_are_written_and_read(kind):
    async def play(box):
        await box.write({"in": b"abc"})
        await box.python("open('out', 'wb').write(open('in', 'rb').read() * 2)")
        return await box.read("out")

    assert in_box(kind, play) == b"abcabc"


@pytest.mark.parametrize(
    ("code", "path"),
    [
        ("pass", "missing"),
        ("import os; os.symlink('/etc/hostname', 'link')", "link"),
        ("open('big', 'wb').write(bytes(2 << 20))", "big"),
        ("import os; os.mkdir('folder')", "folder"),
        ("pass", "/etc/shadow"),
        ("pass", "../../etc/shadow"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_and_the_box_serves_on(kind, code, path):
    async def play(box):
        await box.python(code)
        with pytest.raises(SandboxError, match="refused a call"):
            await box.read(path)
        return (await box.python("1 + 1")).text

    assert in_box(kind, play) == "2"


def test_a_program_ends_what_earlier_ones_left():
    async def play(box):
        await box.run(["sh", "-c", "sleep 1000 & sleep 1000 &"])
        return (await box.script("import os; print([p for p in os.listdir('/proc') if p.isdigit()])")).text

    assert eval(in_box("bubblewrap", play))[0] == "1"
    assert len(eval(in_box("bubblewrap", play))) == 2


def test_values_are_called_for_and_come_back_as_plain_values(kind):
    async def play(box):
        await box.python("def f(a, b=1):\n    a.append(b)\n    return (a, {1: {2}}, 2**70, b'x', None)")
        question = {"how": "call", "path": ["f"], "args": [[1, 2]], "kwargs": {"d": [["b", 7]]}}
        return (await box.call(question)).done

    found = in_box(kind, play)
    big = {"i": "0x400000000000000000"}
    assert found["value"] == {"t": [[1, 2, 7], {"d": [[1, {"s": [2]}]]}, big, {"b": "eA=="}, None]}
    assert found["args"] == [[1, 2, 7]]


def test_questions_of_a_session_are_answered_from_outside(kind):
    async def play(box):
        asked = []

        async def answer(question):
            asked.append((question["how"], question["path"], question["args"]))
            return {"ok": True, "value": {"t": [4, 5]}, "args": [[9]]}

        text = (await box.python("a = [3]; print(f(a), a)", remote=["f"], answer=answer)).text
        return asked, text

    assert in_box(kind, play) == ([("call", ["f"], [[3]])], "(4, 5) [9]")


def test_a_box_that_is_closed_refuses_calls_and_leaves_nothing(kind):
    async def go():
        box = await Box.start(kind, LIMITS)
        await box.python("1")
        process, folder = box._started.process, box._started.folder
        await box.close()
        await box.close()
        with pytest.raises(SandboxError, match="the box is gone: it was closed"):
            await box.python("1")
        return process.returncode, folder

    code, folder = asyncio.run(go())
    assert code is not None and not (folder and os.path.exists(folder))


def test_a_call_that_is_cancelled_ends_the_box(kind):
    async def play(box):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await box.python("import time; time.sleep(100)")
        with pytest.raises(SandboxError, match="a call was cancelled"):
            await box.python("1")

    in_box(kind, play)


def test_a_box_whose_first_process_is_killed_from_outside_is_gone(kind):
    async def play(box):
        for pid in children_of(box._started.process.pid) | {box._started.process.pid}:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxError, match="is gone: it ended"):
            await box.python("1")

    in_box(kind, play)


def test_the_pool_gives_boxes_that_are_up_and_closes_all(kind):
    async def go():
        sandbox = LocalSandbox(LIMITS, ahead=2, kind=kind)
        async with sandbox:
            boxes = [await sandbox.take() for _ in range(4)]
            texts = [box.text for box in await asyncio.gather(*(box.python("6 * 7") for box in boxes))]
            await boxes[0].close()
        return texts, [box._started.process.returncode is not None for box in boxes]

    assert asyncio.run(go()) == (["42"] * 4, [True] * 4)


def lying_box(answer):
    """A box whose first process sends these bytes for its first order."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        theirs.sendall(answer)
        process = subprocess.Popen(["sleep", "1000"], stdin=theirs, stderr=subprocess.PIPE)
    return Box("bubblewrap", LIMITS, Started(process, ours, {}, None))


GOOD = {"ok": True, "ended": None, "code": 0, "seconds": 0.1, "cpu_s": 0.1}


@pytest.mark.parametrize(
    "answer",
    [
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x8c",
        pack(GOOD),
        pack(GOOD, b""),
        pack({**GOOD, "code": "0"}, b"", b""),
        pack({**GOOD, "ended": "paid"}, b"", b""),
        pack({**GOOD, "done": [1]}, b"", b""),
        pack({**GOOD, "seconds": None}, b"", b""),
        b"\xff\xff\xff\xff\xff\xff\xff\xff",
        pack({"ok": 1}, b"", b""),
        json.dumps(GOOD).encode(),
    ],
)
def test_a_box_that_answers_nonsense_is_ended(answer):
    async def go():
        box = lying_box(answer)
        with pytest.raises(SandboxError):
            await box.python("1")
        await box.close()
        assert box._started.process.returncode is not None

    asyncio.run(go())


def test_a_box_that_does_not_answer_is_ended(monkeypatch):
    monkeypatch.setattr(box_module, "_GRACE_S", 0.2)

    async def go():
        box = lying_box(pack(GOOD, b"", b"x")[:-1])
        with pytest.raises(SandboxError, match="did not answer within 0.3 s"):
            await box.call({"how": "get", "path": ["x"], "args": [], "kwargs": {}}, time_s=0.1)
        assert box.closed

    asyncio.run(go())


def test_boxes_end_with_an_owner_that_is_killed(kind, tmp_path):
    code = f"""
import asyncio, os
from hybridrl.sandbox.box import Box
from hybridrl.sandbox.limits import Limits
async def main():
    box = await Box.start({kind!r}, Limits())
    await box.write({{"left": b"x"}})
    work = asyncio.ensure_future(box.python("while True: pass", time_s=1000))
    await asyncio.sleep(0.2)
    print(box._started.process.pid, box._started.folder or "", flush=True)
    await work
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        told, folder, *_ = [*owner.stdout.readline().decode().split(), ""]
        pid = int(told)
        group = children_of(pid) | {pid}
        owner.kill()
    assert len(group) >= 2
    give_up = time.monotonic() + 60
    while (left := {p for p in group if alive(p)}) and time.monotonic() < give_up:
        time.sleep(0.02)
    assert not left
    if folder:
        assert os.listdir(folder) == []
        os.rmdir(folder)


def children_of(pid):
    found = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            own = set(map(int, file.read().split()))
        found |= own.union(*(children_of(child) for child in own))
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_limits_of_a_box_are_its_own():
    limits = replace(LIMITS, processes=4)

    async def play(box):
        code = "import subprocess\nheld = [subprocess.Popen(['sleep', '9']) for _ in range(9)]"
        return (await box.script(code)).text

    assert "Resource temporarily unavailable" in in_box("bubblewrap", play, limits)


def test_processor_time_is_limited_and_told(kind):
    async def play(box):
        busy = await box.script("while True: pass", cpu_s=0.2)
        session = await box.python("while True: pass", cpu_s=0.2)
        idle = await box.python("import time; time.sleep(0.5)", cpu_s=0.2)
        return busy, session, idle

    busy, session, idle = in_box(kind, play)
    assert (busy.ended, session.ended, idle.ended) == ("cpu", "cpu", "exit")
    assert 0.2 <= busy.cpu_s < 5 and idle.cpu_s < 0.2
