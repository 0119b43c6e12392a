"""What a box may share with its machine: a folder that it reads, and a port of its loopback that its owner
listens on. Everything else stays out."""

import asyncio
import socket

import pytest
from box_kinds import need

from hybridrl.errors import ResourceError, SandboxError
from hybridrl.sandbox import local as local_module
from hybridrl.sandbox.box import Box, Result
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.local import LocalSandbox
from hybridrl.sandbox.start import SHARED_FOLDER, Shared, start
from hybridrl.sandbox.support import Support

PORT = 8000
LIMITS = Limits(memory_mb=512, time_s=60)


def in_box(code: str, shared: Shared, *argv: str, **given: object) -> tuple[Result, list[bytes]]:
    """The result of some Python in a box, and what arrived at its owner's port."""

    async def go() -> tuple[Result, list[bytes]]:
        heard: list[bytes] = []

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.readline())
            writer.write(b"answer\n")
            writer.close()

        async with await Box.start("bubblewrap", LIMITS, shared) as box:
            server = None
            if shared.port:
                server = await asyncio.start_server(answer, sock=box.take_listener())
            result = await box.run(["python3", "-c", code, *argv], **given)  # type: ignore[arg-type]
            if server:
                server.close()
        return result, heard

    need("bubblewrap")
    return asyncio.run(go())


ASK = f"""
import socket
with socket.create_connection(("127.0.0.1", {PORT})) as s:
    s.sendall(b"question\\n")
    print(s.makefile().readline())
"""


def test_a_program_asks_its_owner_over_the_shared_port() -> None:
    result, heard = in_box(ASK, Shared(port=PORT))
    assert result.ended == "exit" and result.stdout == b"answer\n\n", result.text
    assert heard == [b"question\n"]


def test_each_box_has_a_loopback_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as outside:
        outside.settimeout(0.2)
        code = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])))"
        result, _ = in_box(code, Shared(port=PORT), str(outside.getsockname()[1]))
        assert result.ended == "error" and b"ConnectionRefusedError" in result.stderr
        with pytest.raises(TimeoutError):
            outside.accept()


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        ("socket.create_connection(('192.0.2.1', 80))", "Network is unreachable"),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "Permission denied"),
        ("socket.socket(socket.AF_INET, socket.SOCK_RAW)", "Permission denied"),
        ("socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)", "Permission denied"),  # SCTP
        ("socket.socket(socket.AF_INET6, socket.SOCK_STREAM)", "Permission denied"),
        ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "Permission denied"),
    ],
)
def test_nothing_else_of_the_network_is_there(attempt: str, error: str) -> None:
    result, _ = in_box(f"import socket; {attempt}", Shared(port=PORT))
    assert result.ended == "error" and error in result.text


def test_a_box_without_a_port_has_no_socket() -> None:
    result, _ = in_box("import socket; socket.socket(socket.AF_INET)", Shared())
    assert result.ended == "error" and "Permission denied" in result.text


def test_a_program_reads_the_shared_folder_and_cannot_write_to_it(tmp_path) -> None:
    tmp_path.chmod(0o755)  # a box of root has a user of its own
    (tmp_path / "own.txt").write_text("content")
    code = "import os; print(os.getcwd(), open('own.txt').read(), os.environ['X']); open('new', 'w')"
    given = {"folder": SHARED_FOLDER, "variables": {"X": "y"}}
    result, _ = in_box(code, Shared(folder=str(tmp_path)), **given)
    assert result.stdout == f"{SHARED_FOLDER} content y\n".encode()
    assert "Read-only file system" in result.text and not (tmp_path / "new").exists()


def test_landlock_shares_nothing() -> None:
    with pytest.raises(SandboxError, match="landlock has no network of its own"):
        start("landlock", LIMITS, Shared(port=PORT))


def test_a_machine_with_landlock_alone_is_refused(monkeypatch) -> None:
    async def landlock_alone() -> Support:
        return Support("landlock", "bubblewrap: no namespaces", fix="allow them")

    monkeypatch.setattr(local_module, "inspect", landlock_alone)
    with pytest.raises(ResourceError, match=r"only boxes of bubblewrap .* no namespaces"):
        asyncio.run(LocalSandbox(shared=Shared(port=PORT)).start())
