"""A server at PREFECT_API_URL that does not serve is reported in one line, within seconds."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from srpo_core.errors import ConfigError, SrpoError
from srpo_core.runtime.prefect_api import list_flow_runs, require_prefect_server, with_own_secret

ANSWERS = {
    "/api": (200, "application/json", b"3"),
    "/secret/api": (401, "application/json", b'{"exception_message": "Unauthorized"}'),
    "/forbidden/api": (403, "text/html", b"<html>"),
    "/proxy/api": (200, "text/html", b"<html><body>Sign in to the network</body></html>"),
    "/gateway/api": (502, "text/html", b"<html>"),
    "/other/api": (200, "application/json", b'{"items": []}'),
    "/listing/api": (200, "application/json", b'[{"id": "1"}]'),
    "/numbers/api": (200, "application/json", b"[1]"),
    "/endless/api": (200, "application/json", b" "),
}


class Answer(BaseHTTPRequestHandler):
    def do_POST(self):
        status, kind, body = ANSWERS.get(
            self.path.removesuffix("/flows/count").removesuffix("/flow_runs/filter"), (404, "text/html", b"")
        )
        if status == 401 and self.headers.get("Authorization") in ("Basic dTpw", "Bearer key"):
            status, body = 200, b"0"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body)
        while self.path.startswith("/endless"):  # each byte in time, the whole never
            time.sleep(0.1)
            try:
                self.wfile.write(body)
            except OSError:
                return

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


@pytest.mark.parametrize("environment", [{}, {"PREFECT_API_URL": ""}, {"PREFECT_API_URL": " \n"}])
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
        "start the server, correct PREFECT_API_URL, or unset it: then a run starts its own server; "
        "that of 'srpo up' starts again by itself ('srpo up --status')"
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
    "address",
    [
        "127.0.0.1:4200",
        "localhost:4200/api",
        "http://",
        "ftp://a/api",
        "true",
        "http://[::1/api",
        "http://a:port/api",
        "http://a:70000/api",
        "http://a b/api",
        "http://a/\tapi",
    ],
)
def test_what_is_no_address_is_named(address):
    assert "is not an address: write http://HOST:4200/api, or unset it" in line_of(ConfigError, address)


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter22@127.0.0.1:9/api",
        "http://me:hunter22@[::1/api",
        "http://hunter22@127.0.0.1:9/api",
        "me:hunter22@127.0.0.1:9/api",
        "http://me:hunter22/7@127.0.0.1:9/api",
    ],
)
def test_a_password_in_the_address_is_masked(address):
    with pytest.raises(SrpoError) as caught:
        require_prefect_server({"PREFECT_API_URL": address})
    assert "hunter22" not in str(caught.value)
    assert "***@" in str(caught.value)


def test_user_and_password_of_the_address_are_sent_as_prefects_client_sends_them(server):
    host = server.removeprefix("http://")
    require_prefect_server({"PREFECT_API_URL": f"http://u:%70@{host}/secret/api"})
    with pytest.raises(ConfigError, match="refuses the secret"):  # also where a variable has the right secret
        require_prefect_server(
            {"PREFECT_API_URL": f"http://u:wrong@{host}/secret/api", "PREFECT_API_AUTH_STRING": "u:p"}
        )


def test_a_user_and_password_come_before_a_key_as_in_prefects_client(server):
    address = {"PREFECT_API_URL": f"{server}/secret/api"}
    require_prefect_server({**address, "PREFECT_API_AUTH_STRING": "u:p", "PREFECT_API_KEY": "wrong"})
    with pytest.raises(ConfigError, match="refuses the secret"):
        require_prefect_server({**address, "PREFECT_API_AUTH_STRING": "u:wrong", "PREFECT_API_KEY": "key"})


@pytest.mark.parametrize("name", ["PREFECT_API_KEY", "PREFECT_API_AUTH_STRING"])
def test_a_line_break_at_the_end_of_a_secret_is_not_sent(server, name):
    secret = {"PREFECT_API_KEY": "key\r\n", "PREFECT_API_AUTH_STRING": "u:p\n"}[name]
    require_prefect_server({"PREFECT_API_URL": f"{server}/secret/api", name: secret})


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PREFECT_API_KEY", "hunter22\nhunter22", "has letters that no key has, such as a line break"),
        ("PREFECT_API_KEY", "hunter22€", "has letters that no key has"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", '["a"]', "cannot be sent: write names and values in ASCII"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", "{hunter22", "cannot be sent"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-A": 1}', "cannot be sent"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-A": "hunter22\\n"}', "cannot be sent"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-A": "hunter22€"}', "cannot be sent"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X A:": "hunter22"}', "cannot be asked"),
        ("PREFECT_API_SSL_CERT_FILE", "/nowhere/ca.pem", "cannot be read ([Errno 2] No such file"),
    ],
)
def test_a_variable_of_prefect_that_cannot_be_used_is_named_without_its_secret(server, name, value, says):
    with pytest.raises(ConfigError) as caught:
        require_prefect_server({"PREFECT_API_URL": f"{server}/api", name: value})
    line = str(caught.value)
    assert says in line
    assert name in line or says == "cannot be asked"
    assert "hunter22" not in line
    assert "\n" not in line


def test_runs_of_a_server_are_listed_within_a_limit_of_time(server, silent, garbage):
    def listed(url):
        return list_flow_runs("align", {"PREFECT_API_URL": url}, limit=5, seconds=0.5)

    assert listed(f"{server}/listing/api") == [{"id": "1"}]
    for url in (silent, garbage, f"{server}/endless/api"):
        with pytest.raises(SrpoError, match="no Prefect server answers at"):
            listed(url)
    for name in ("other", "proxy", "numbers"):
        with pytest.raises(SrpoError, match="is not Prefect's API"):
            listed(f"{server}/{name}/api")
    with pytest.raises(ConfigError, match="refuses the secret"):
        listed(f"{server}/secret/api")


class Runs(BaseHTTPRequestHandler):
    """A server with 450 runs that gives at most 200 at once, as Prefect does; one starts before each answer but the first."""

    newest = 449

    def do_POST(self):
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert query["limit"] <= 200, "Prefect answers 422"
        runs = [{"id": str(number)} for number in range(Runs.newest, -1, -1)]
        Runs.newest += 1
        body = json.dumps(runs[query["offset"] :][: query["limit"]]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Print nothing."""


@pytest.mark.parametrize(
    ("limit", "first", "count"), [(20, 449, 20), (200, 449, 200), (300, 449, 299), (1000, 449, 450)]
)
def test_more_runs_than_a_server_gives_at_once_are_listed_each_once(limit, first, count):
    """A run that starts between two answers moves the last run of the one to the next: it is not listed twice."""
    Runs.newest = 449
    server = ThreadingHTTPServer(("127.0.0.1", 0), Runs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        environment = {"PREFECT_API_URL": f"http://127.0.0.1:{server.server_port}/api"}
        found = [int(run["id"]) for run in list_flow_runs("align", environment, limit=limit, seconds=30)]
    finally:
        server.shutdown()
        server.server_close()
    assert found == list(range(first, first - count, -1))


def test_the_secret_of_a_home_is_used_for_a_server_on_this_machine_alone_and_yields_to_another(tmp_path):
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect/auth").write_text("srpo:secret")
    here, there = (
        {"PREFECT_API_URL": "http://127.0.0.1:4200/api"},
        {"PREFECT_API_URL": "http://host:4200/api"},
    )
    assert with_own_secret(here, tmp_path)["PREFECT_API_AUTH_STRING"] == "srpo:secret"
    own = {**here, "PREFECT_API_AUTH_STRING": "me:mine"}
    assert with_own_secret(own, tmp_path) == own
    assert with_own_secret(there, tmp_path) == there
