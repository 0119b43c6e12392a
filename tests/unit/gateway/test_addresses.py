"""Where an endpoint listens: with a certificate, and on other addresses than loopback."""

import asyncio
import shutil
import socket
import ssl
import subprocess

import httpx
import openai
import pytest
from gateway_values import Policy, opened
from openai import AsyncOpenAI

from hybridrl.gateway.server import ServerSetup

ASKED = {"model": "m", "messages": [{"role": "user", "content": "q"}]}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Files with a certificate of 127.0.0.1 that it signed itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificate, and is not here")
    folder = tmp_path_factory.mktemp("tls")
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "own.pem"]
    subprocess.run(["openssl", *made], cwd=folder, check=True, capture_output=True)
    return str(folder / "own.pem"), str(folder / "key.pem")


def said(setup: ServerSetup, verify: ssl.SSLContext | bool = True) -> tuple[str, str]:
    """The address of a session, and what the policy says there."""

    async def run():
        async with opened(Policy(), setup=setup) as (_, session, _), httpx.AsyncClient(verify=verify) as http:
            client = AsyncOpenAI(
                base_url=f"{session.url}/v1", api_key=session.key, http_client=http, max_retries=0
            )
            found = await client.chat.completions.create(**ASKED)
            return session.url, found.choices[0].message.content

    return asyncio.run(run())


def test_a_client_that_trusts_the_certificate_is_answered_over_tls(certificate):
    url, text = said(ServerSetup(certificate=certificate), ssl.create_default_context(cafile=certificate[0]))
    assert url.startswith("https://127.0.0.1:") and text == "re 1"


def test_a_client_that_does_not_trust_it_sends_nothing(certificate):
    with pytest.raises(openai.APIConnectionError) as error:
        said(ServerSetup(certificate=certificate))
    assert "CERTIFICATE_VERIFY_FAILED" in repr(error.value.__cause__)


def test_an_endpoint_on_all_addresses_is_reached_by_the_name_of_its_machine(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    url, text = said(ServerSetup(host="0.0.0.0"))
    assert url.startswith("http://localhost:") and text == "re 1"
