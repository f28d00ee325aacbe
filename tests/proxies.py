"""A proxy before an object store on this machine that fails now and then, as stores do.

A process of its own: Delta's library holds Python's lock while it waits for the store.
"""

import http.client
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from typing_extensions import override

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
FAULTS = ("503", "500", "429", "cut before", "cut after")
"""What becomes of a request: an answer that asks to come again, or the line is cut before or after the store did it."""
MADE = "/faults-that-were-made"


@contextmanager
def flaky(endpoint: str, *, tries: int = 1) -> Iterator[str]:
    """A block in which the proxy stands before the store at `endpoint`: its address. The first `tries` of each request fail."""
    command = [sys.executable, "-m", "tests.proxies", endpoint, str(tries)]
    proxy = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    assert proxy.stdout is not None, "it was asked for"
    try:
        yield proxy.stdout.readline().strip()
    finally:
        proxy.kill()
        proxy.wait()
        proxy.stdout.close()


def made(url: str) -> dict[str, int]:
    """The faults that a proxy made, by kind."""
    with urlopen(url + MADE) as answer:
        return json.loads(answer.read())


class Flaky:
    """Which requests fail, and how."""

    def __init__(self, tries: int) -> None:
        self.tries = tries
        self.made: Counter[str] = Counter()
        self._seen: Counter[tuple[str, str]] = Counter()
        self._number = 0
        self._lock = threading.Lock()

    def fault(self, method: str, path: str) -> str | None:
        """What becomes of this request."""
        with self._lock:
            self._seen[method, path] += 1
            if self._seen[method, path] > self.tries:
                return None
            self._number += 1
            fault = FAULTS[self._number % len(FAULTS)]
            self.made[fault] += 1
            return fault


def serve(endpoint: str, tries: int) -> None:
    """Stand before the store until killed."""
    store, here = urlsplit(endpoint), Flaky(tries)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            if self.path == MADE:
                self._answer(200, {}, json.dumps(here.made).encode())
                return
            body = self._body()
            fault = here.fault(self.command, self.path)
            if fault == "cut before":
                self._cut()
                return
            if fault is not None and fault.isdigit():
                self._answer(int(fault), {"Content-Type": "application/xml"}, SLOW_DOWN)
                return
            connection = http.client.HTTPConnection(str(store.hostname), store.port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "expect")}
            if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
                headers = {name: value for name, value in headers.items() if name.lower() != "transfer-encoding"}
                headers["Content-Length"] = str(len(body))
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
            told = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "transfer-encoding")}
            connection.close()
            if fault == "cut after":
                self._cut()
                return
            self._answer(answer.status, told, content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 # http.server looks for these names

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        def _cut(self) -> None:
            self.close_connection = True
            self.connection.close()

        def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            length = headers.pop("Content-Length", str(len(content)))  # of a HEAD, which has no content, the object's
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        @override
        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a test's output is its own."""

        @override
        def handle(self) -> None:
            with suppress(OSError, ValueError):  # the other side has gone, or we cut the line
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
