"""An HTTP server on loopback that receives what apprise sends to `json://`."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Receiver:
    """Keeps every message that was sent to it; a path that begins with /fail answers 500, with /hang not at all.

    messages: title, message and type by apprise, in the order received.
    """

    def __init__(self) -> None:
        self.messages = []
        self._closed = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.startswith("/hang"):
                    receiver._closed.wait()
                failed = self.path.startswith("/fail")
                self.send_response(500 if failed else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()
                if not failed:
                    receiver.messages.append(sent)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"json://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def titles(self, count, seconds=30):
        """Wait until `count` messages have come, and return the titles of all, sorted."""
        until = time.monotonic() + seconds
        while len(self.messages) < count and time.monotonic() < until:
            time.sleep(0.02)
        return sorted(message["title"] for message in self.messages)

    def body(self, title):
        """Return the lines of the one message with this title."""
        (found,) = [message["message"] for message in self.messages if message["title"] == title]
        return found.splitlines()

    def close(self):
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
