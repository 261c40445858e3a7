"""An object store for tests: a server of its own on a free port, buckets, and a proxy that spoils what it passes on."""
import http.client
import importlib.util
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest

CANARY = "canary-Zq8w3kVt9x"                    # the secret key of all tests: it must never be shown
SETTINGS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": CANARY, "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true"}
UNSET = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_SKIP_SIGNATURE",
         "AWS_VIRTUAL_HOSTED_STYLE_REQUEST")


def free_port() -> int:
    "A port of the loopback interface that nobody listens on now."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# moto looks at a condition and then writes: of two racing writers both may win, which no real store allows
ONE_PUT_AT_A_TIME = """
import sys, threading
from moto.s3.responses import S3Response
from moto.server import main
lock, put = threading.Lock(), S3Response.put_object
def put_object(self):
    with lock: return put(self)
S3Response.put_object = put_object
main(sys.argv[1:])
"""


@contextmanager
def serving() -> Iterator[str]:
    "A store in a process of its own; its endpoint."
    if importlib.util.find_spec("moto") is None: pytest.skip("moto[server] is not installed")
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", ONE_PUT_AT_A_TIME, "-H", "127.0.0.1", "-p", str(port)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen, timeout_s: float = 60) -> None:
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        if server.poll() is not None: raise RuntimeError(f"moto_server ended with {server.returncode}")
        try: return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError: time.sleep(0.05)
    raise RuntimeError("moto_server does not listen")


def make_bucket(endpoint: str, name: str | None = None) -> str:
    "Make a bucket of a name of its own; its URL."
    name = name or f"b{uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=30).close()
    return f"s3://{name}"


def use(monkeypatch, endpoint: str, **settings: str) -> None:
    "Let the environment of this process name the store at `endpoint`."
    for name in UNSET: monkeypatch.delenv(name, raising=False)
    for name, value in ({"AWS_ENDPOINT_URL": endpoint} | SETTINGS | settings).items(): monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def store_server() -> Iterator[str]:
    "The endpoint of one store for all tests of the session."
    with serving() as endpoint: yield endpoint


@pytest.fixture
def bucket(store_server, monkeypatch) -> str:
    "URL of a new, empty bucket; the environment names its store."
    use(monkeypatch, store_server)
    return make_bucket(store_server)


@pytest.fixture
def lax_bucket(store_server, monkeypatch) -> Iterator[str]:
    "URL of a new bucket on a store that knows no conditions: it ignores every If-Match and If-None-Match."
    url = make_bucket(store_server)
    with Proxy(store_server, strip=("if-match", "if-none-match")) as proxy:
        use(monkeypatch, proxy.endpoint)
        yield url


Answer = tuple[int, bytes]


def every_second_put() -> Callable[[str, str], bool]:
    "A rule for `Proxy(loses=)`: the answers of the first put, the third, ... do not arrive, so that each is repeated."
    n = [0]
    def loses(method: str, path: str) -> bool:
        n[0] += method == "PUT"
        return method == "PUT" and n[0] % 2 == 1
    return loses


class Proxy:
    """Passes requests on to a store, without the headers `strip`; `answer` (method, path) may answer in its place.

    `loses` (method, path): the store does what it is asked for, and its answer is lost. `edit` (method, path, body)
    gives the body that is passed back. `seen` holds (method, path) of all requests."""
    def __init__(self, upstream: str, strip: tuple[str, ...] = (),
                 answer: Callable[[str, str], Answer | None] = lambda method, path: None,
                 loses: Callable[[str, str], bool] = lambda method, path: False,
                 edit: Callable[[str, str, bytes], bytes] = lambda method, path, body: body):
        self.upstream, self.strip, self.answer, self.loses = upstream.removeprefix("http://"), strip, answer, loses
        self.edit = edit
        self.seen: list[tuple[str, str]] = []
        handler = type("Handler", (_Handler,), {"proxy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def log_message(self, *_): pass

    def _pass_on(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.proxy.seen.append((self.command, self.path))
        own = self.proxy.answer(self.command, self.path)
        if own is not None: return self._send(own[0], [("content-type", "application/xml")], own[1])
        upstream = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in (*self.proxy.strip, "connection")}
            upstream.request(self.command, self.path, body, headers)
            got = upstream.getresponse()
            status, headers, body = got.status, got.getheaders(), got.read()
            if self.proxy.loses(self.command, self.path): return self._send(502, [], b"")
            self._send(status, headers, self.proxy.edit(self.command, self.path, body))
        finally: upstream.close()

    def _send(self, status, headers, body):
        self.send_response_only(status)
        dropped = ("transfer-encoding", "connection", *(["content-length"] if self.command != "HEAD" else []))
        for k, v in headers:
            if k.lower() not in dropped: self.send_header(k, v)
        if self.command != "HEAD": self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD": self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass_on
