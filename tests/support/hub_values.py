"""A Hugging Face hub of this machine: its cache, and a server that answers what downloads ask."""

import hashlib
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 151,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
}


def cached(cache, name, files):
    """Put a copy of a model into a cache of the hub; its folder."""
    repo = Path(cache, f"models--{name.replace('/', '--')}")
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for file, content in files.items():
        (snapshot / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return snapshot


def cached_dataset(cache, name, files):
    """Put parquet copies of a data set into a cache of the hub, file -> bytes; the folder they are in."""
    repo = Path(cache, f"datasets--{name.replace('/', '--')}")
    snapshot, newest = repo / "snapshots" / COMMIT, repo / "refs/refs/convert/parquet"
    newest.parent.mkdir(parents=True, exist_ok=True)
    newest.write_text(COMMIT)
    for file, content in files.items():
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_bytes(content)
    return snapshot


def parquet(rows):
    """The bytes of a parquet file with these rows."""
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


@contextmanager
def served(models):
    """A hub with these models, name -> file -> bytes; None for files: only for those who accepted its terms.
    Data sets are among them, as models are.

    Yields:
        Its address, and a list of the files that were downloaded.
    """
    taken: list[str] = []
    handler = type("Handler", (_Handler,), {"models": models, "taken": taken})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", taken
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    models: dict[str, dict[str, bytes] | None]
    taken: list[str]

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def log_message(self, format, *args):
        pass

    def _answer(self, *, body):
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[0] == "api"
        parts = parts[1:] if parts[0] == "datasets" else parts
        org, model, kind, _, *rest = [*(parts[2:] if is_api else parts), "", "", "", ""]
        rest = [part for part in rest if part]
        files = self.models.get(f"{org}/{model}", {})
        if not files:
            self._send(403 if files is None else 404, code="GatedRepo" if files is None else "RepoNotFound")
        elif not is_api:
            name = "/".join(rest)
            self.taken.extend([name] if body else [])
            self._send(200 if name in files else 404, files.get(name, b""), code="EntryNotFound", body=body)
        elif kind == "tree":
            self._send(200, json.dumps([_entry(name, text) for name, text in files.items()]).encode())
        else:
            found = {"id": f"{org}/{model}", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
            self._send(200, json.dumps(found).encode())

    def _send(self, status, content=b"", *, code="", body=True):
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        headers |= {"Content-Length": str(len(content)), "Content-Type": "application/json"}
        headers |= {"X-Error-Code": code} if status >= 400 else {}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _entry(name, content):
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
