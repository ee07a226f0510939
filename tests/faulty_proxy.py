"""An HTTP proxy on loopback, in front of a server of S3, that makes the faults of other servers and of networks."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Request:
    """A request as the client sent it; names of headers are in lower case, `path` has the query."""

    method: str
    host: str
    path: str
    headers: dict[str, str]
    body: bytes

    def without(self, *names: str) -> "Request":
        return replace(self, headers={name: text for name, text in self.headers.items() if name not in names})


@dataclass(frozen=True)
class Answer:
    """The answer to a request; headers without the length."""

    status: int
    headers: dict[str, str]
    body: bytes
    length: int | None = None  # of the object, in the answer to HEAD


Send = Callable[[Request], Answer]
# Answers a request itself or with `send`; None closes the connection without an answer.
Fault = Callable[[Request, Send], Answer | None]


def honest(request: Request, send: Send) -> Answer | None:
    return send(request)


def refusal(status: int, code: str) -> Answer:
    text = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    return Answer(status, {"Content-Type": "application/xml"}, text)


@dataclass
class FaultyProxy:
    """A running proxy to `upstream`; `fault` may be replaced at any time, `seen` lists the requests."""

    upstream: str
    fault: Fault = honest
    seen: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def send(self, request: Request) -> Answer:
        """Send a request to the server behind the proxy, with the bucket in the path."""
        host = urlsplit(self.upstream).netloc
        bucket, _, rest = request.host.partition(".")
        path = f"/{bucket}{request.path}" if rest == "store.example" else request.path
        connection = HTTPConnection(host, timeout=60)
        try:
            connection.request(request.method, path, request.body, {**request.headers, "host": host})
            answer = connection.getresponse()
            dropped = ("transfer-encoding", "connection", "content-length")
            headers = {name: text for name, text in answer.getheaders() if name.lower() not in dropped}
            return Answer(answer.status, headers, answer.read(), answer.length or _length(answer))
        finally:
            connection.close()


def _length(answer: object) -> int | None:
    text = answer.getheader("content-length")  # type: ignore[attr-defined]
    return None if text is None else int(text)


class _Handler(BaseHTTPRequestHandler):
    """Pass each request of one connection to the proxy's fault."""

    protocol_version = "HTTP/1.1"
    proxy: FaultyProxy

    def handle_any(self) -> None:
        headers = {name.lower(): text for name, text in self.headers.items()}
        url = urlsplit(self.path)  # whole, if the client takes this for its HTTP proxy
        host = url.netloc or headers.get("host", "")
        path = url.path + (f"?{url.query}" if url.query else "")
        body = self.rfile.read(int(headers.get("content-length", 0)))
        for name in ("expect", "connection", "proxy-connection"):
            headers.pop(name, None)
        request = Request(self.command, host.partition(":")[0], path, headers, body)
        self.proxy.seen.append(request)
        answer = self.proxy.fault(request, self.proxy.send)
        if answer is None:
            self.close_connection = True
            return
        self.send_response_only(answer.status)
        for name, text in answer.headers.items():
            self.send_header(name, text)
        head = self.command == "HEAD" and answer.length is not None
        self.send_header("Content-Length", str(answer.length if head else len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815  # names of http.server

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def refusing_checksums(request: Request, send: Send) -> Answer | None:
    """Refuse every request with a checksum other than MD5, and bytes without their MD5, as Backblaze B2 does."""
    import hashlib
    from base64 import b64encode

    if any(name.startswith(("x-amz-checksum", "x-amz-sdk-checksum")) for name in request.headers):
        return refusal(400, "InvalidArgument")
    md5 = b64encode(hashlib.md5(request.body).digest()).decode()
    if request.headers.get("content-md5", md5) != md5:
        return refusal(400, "BadDigest")
    return send(request)


def whole_checksums(request: Request, send: Send) -> Answer | None:
    """Give the checksum of the whole object with every range of it, if the client asks for one, as GCS does."""
    answer = send(request)
    if request.method == "GET" and request.headers.get("x-amz-checksum-mode"):
        return replace(answer, headers={**answer.headers, "x-amz-checksum-crc32": "AAAAAA=="})
    return answer


def busy(share: float, seed: int) -> Fault:
    """Refuse this share of the requests with 503 SlowDown."""
    draws, lock = Random(seed), threading.Lock()

    def fault(request: Request, send: Send) -> Answer | None:
        with lock:
            refused = draws.random() < share
        return refusal(503, "SlowDown") if refused else send(request)

    return fault


def virtual_hosts_only(request: Request, send: Send) -> Answer | None:
    """Refuse requests with the bucket in the path, as Tencent COS and Aliyun OSS do."""
    if not request.host.endswith(".store.example"):
        return refusal(403, "PathStyleRequestNotAllowed")
    return send(request)


def losing_answers(path: str) -> Fault:
    """Carry out every write of a path, but close the connection instead of an answer."""

    def fault(request: Request, send: Send) -> Answer | None:
        answer = send(request)
        return None if request.method == "PUT" and path in request.path else answer

    return fault


def racy(writers: int) -> Fault:
    """Honour the conditions of single writers, but let all of several simultaneous ones win, as Swift does.

    A conditional write of other bytes than those that were written last waits for as many others.
    """
    meeting, last = threading.Barrier(writers), dict[str, bytes]()

    def fault(request: Request, send: Send) -> Answer | None:
        conditions = ("if-none-match", "if-match")
        if request.method != "PUT":
            return send(request)
        if not any(name in request.headers for name in conditions):
            last[request.path] = request.body
        if last.get(request.path) == request.body:
            return send(request)
        meeting.wait(timeout=60)
        return send(request.without(*conditions))

    return fault


def without(*names: str, status: int = 501, code: str = "NotImplemented") -> Fault:
    """Refuse every request with one of these headers or queries."""

    def fault(request: Request, send: Send) -> Answer | None:
        query = urlsplit(request.path).query.split("&")
        given = any(name in request.headers or name in query for name in names)
        return refusal(status, code) if given else send(request)

    return fault
