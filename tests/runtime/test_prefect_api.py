"""A server at PREFECT_API_URL that does not serve is reported in one line, within seconds."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime.prefect_api import require_prefect_server

ANSWERS = {
    "/api": (200, "application/json", b"3"),
    "/secret/api": (401, "application/json", b'{"exception_message": "Unauthorized"}'),
    "/forbidden/api": (403, "text/html", b"<html>"),
    "/proxy/api": (200, "text/html", b"<html><body>Sign in to the network</body></html>"),
    "/gateway/api": (502, "text/html", b"<html>"),
    "/other/api": (200, "application/json", b'{"items": []}'),
}


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        status, kind, body = ANSWERS.get(self.path.removesuffix("/flows/count"), (404, "text/html", b""))
        if status == 401 and self.headers.get("Authorization") in ("Basic dTpw", "Bearer key"):
            status, body = 200, b"0"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@pytest.fixture
def silent():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"


@pytest.fixture
def garbage():
    """A server that answers something else than HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            connection.recv(1000)
            connection.sendall(b"220 mail.example.org ESMTP\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api"


def line_of(kind, address, **variables):
    with pytest.raises(kind) as caught:
        require_prefect_server({"PREFECT_API_URL": address, **variables}, seconds=0.2)
    line = str(caught.value)
    assert "\n" not in line
    assert f"PREFECT_API_URL={address}" in line
    return line


@pytest.mark.parametrize("environment", [{}, {"PREFECT_API_URL": ""}])
def test_without_an_address_nothing_is_asked(environment):
    require_prefect_server(environment)


def test_a_server_that_counts_its_flows_is_good(server):
    require_prefect_server({"PREFECT_API_URL": f"{server}/api"})
    require_prefect_server({"PREFECT_API_URL": f"{server}/api/"})


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/proxy/api", "is not Prefect's API, but for instance a proxy"),
        ("/other/api", "is not Prefect's API"),
        ("/gateway/api", "answers with 502 Bad Gateway"),
        ("/ap", "answers with 404 Not Found (the address of Prefect's API ends in /api)"),
    ],
)
def test_what_is_not_prefects_api_is_named_with_the_remedy(server, path, says):
    line = line_of(SrpoError, server + path)
    assert says in line
    assert line.endswith(
        "start the server, correct PREFECT_API_URL, or unset it: then a run starts its own server"
    )


@pytest.mark.parametrize("path", ["/secret/api", "/forbidden/api"])
def test_a_refused_secret_is_named_with_the_variables_that_hold_it(server, path):
    line = line_of(ConfigError, server + path, PREFECT_API_AUTH_STRING="u:wrong")
    assert "refuses the secret (40" in line
    assert "set PREFECT_API_AUTH_STRING=USER:PASSWORD or PREFECT_API_KEY" in line


@pytest.mark.parametrize(
    "secret", [{"PREFECT_API_AUTH_STRING": "u:p"}, {"PREFECT_API_KEY": "key"}, {"PREFECT_CLIENT_CUSTOM_HEADERS": '{"Authorization": "Bearer key"}'}]
)  # fmt: skip
def test_the_secret_of_prefects_own_variables_is_sent(server, secret):
    require_prefect_server({"PREFECT_API_URL": f"{server}/secret/api", **secret})


def test_a_server_that_never_answers_is_given_up(silent):
    assert "(timed out)" in line_of(SrpoError, silent)


def test_a_server_of_another_protocol_is_named(garbage):
    assert "no Prefect server answers at" in line_of(SrpoError, garbage)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("http://127.0.0.1:9/api", "Connection refused"),
        ("http://no-such-host.invalid:4200/api", "no Prefect server answers at"),
    ],
)
def test_a_server_that_is_not_there_is_named(address, says):
    assert says in line_of(SrpoError, address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:4200", "localhost:4200/api", "http://", "ftp://a/api", "true"]
)
def test_what_is_no_address_is_named(address):
    assert "is not an address: write http://HOST:4200/api, or unset it" in line_of(ConfigError, address)


def test_a_password_in_the_address_is_masked():
    with pytest.raises(SrpoError) as caught:
        require_prefect_server({"PREFECT_API_URL": "http://me:hunter22@127.0.0.1:9/api"})
    assert "hunter22" not in str(caught.value)
