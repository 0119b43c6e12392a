"""Boxes of a service, over a connection: the same calls, and nothing left when a client is gone."""

import asyncio

import pytest

from hybridrl.errors import ConfigError, ResourceError, SandboxError
from hybridrl.sandbox.inside.frames import FrameReader, pack
from hybridrl.sandbox.limits import Limits
from hybridrl.sandbox.places import check_place, open_sandbox
from hybridrl.sandbox.serve import Service

TOKEN = "0123456789abcdef0123"
KIND = "bubblewrap"


def served(play, tmp_path, **options):
    """Play with the URL of a service and the service."""
    (tmp_path / "token").write_text(TOKEN + "\n")

    async def go():
        service = Service(KIND, TOKEN, **options)
        server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server:
            found = await play(f"tcp://127.0.0.1:{port}?token_file={tmp_path / 'token'}", service)
            async with asyncio.timeout(60):
                while service._boxes:
                    await asyncio.sleep(0.01)
        return found

    return asyncio.run(go())


def test_a_box_elsewhere_does_what_one_here_does(tmp_path):
    async def play(url, service):
        await check_place(url)
        sandbox = open_sandbox(url, Limits(memory_mb=256, time_s=60))
        await sandbox.start()
        box = await sandbox.take()
        await box.python("x = 6")
        texts = [(await box.python("x * 7")).text, (await box.run(["wc", "-c"], stdin=b"four")).text]
        late = (await box.script("while True: pass", time_s=0.2)).ended
        await sandbox.close()
        return texts, late, box.closed

    assert served(play, tmp_path) == (["42", "4"], "time", True)


def test_a_client_that_is_gone_takes_its_box_along(tmp_path):
    async def play(url, service):
        sandbox = open_sandbox(url, Limits(time_s=1000))
        box = await sandbox.take()
        work = asyncio.ensure_future(box.python("while True: pass"))
        await asyncio.sleep(0.2)
        [inner] = service._boxes
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return inner

    inner = served(play, tmp_path)
    assert inner._started.process.returncode is not None


def test_another_token_and_too_many_boxes_are_refused(tmp_path):
    (tmp_path / "other").write_text("another token, long enough")

    async def play(url, service):
        with pytest.raises(ResourceError, match="the token is another one") as refused:
            await check_place(url.replace("/token", "/other"), where="my.yaml:3")
        assert refused.value.where == "my.yaml:3" and "hybridrl.sandbox.serve" in refused.value.fix
        sandbox = open_sandbox(url, Limits())
        first = await sandbox.take()
        with pytest.raises(SandboxError, match="1 boxes are taken"):
            await sandbox.take()
        await first.close()

    served(play, tmp_path, most=1)


@pytest.mark.parametrize(
    "hello",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        pack({"token": 1}),
        pack({"token": TOKEN}),
        pack({"token": TOKEN, "limits": {"memory_mb": 1}}),
        pack({"token": TOKEN, "limits": dict.fromkeys(Limits.__slots__, 0)}),
        pack({"token": TOKEN, "limits": dict.fromkeys(Limits.__slots__, "1")}),
        pack({"token": "x" * 5000}),
    ],
)
def test_a_hello_of_another_form_is_refused(tmp_path, hello):
    async def play(url, service):
        host, _, port = url.removeprefix("tcp://").partition("?")[0].partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(hello)
        [answer] = FrameReader(1 << 16).feed(await reader.read())
        writer.close()
        return answer.header["ready"]

    assert served(play, tmp_path) is False


@pytest.mark.parametrize(
    "place",
    ["docker", "http://a:1?token_file=x", "tcp://a", "tcp://a:1", "tcp://a:99999?token_file=x", "tcp://[:1"],
)
def test_a_place_of_another_form_is_refused_with_the_form(place):
    with pytest.raises(ConfigError) as refused:
        open_sandbox(place, Limits(), where="my.yaml:3")
    assert "tcp://HOST:PORT?token_file=PATH" in refused.value.fix and refused.value.where == "my.yaml:3"


def test_a_token_that_is_missing_or_short_is_refused(tmp_path):
    (tmp_path / "short").write_text("abc")
    for name, why in (("missing", "cannot be read"), ("short", "has 3 characters, at least 16")):
        with pytest.raises(ConfigError, match=why):
            open_sandbox(f"tcp://a:1?token_file={tmp_path / name}", Limits())


def test_a_service_that_is_not_there_is_refused(tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(ResourceError, match="does not answer"):
        asyncio.run(check_place(f"tcp://127.0.0.1:1?token_file={tmp_path / 'token'}"))
