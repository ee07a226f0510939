"""Servers on this machine are reached directly, whatever proxy is configured for the rest."""

import socket
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from requests.utils import should_bypass_proxies

from srpo_core.runtime.proxies import direct_environment, proxy_variables, useless_proxies

DEAD = "http://127.0.0.1:9"
KINDS = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@pytest.fixture
def no_proxies(monkeypatch):
    for name in (*KINDS, "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture(scope="module")
def server():
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("0.0.0.0", 0), Answer) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http.server_address[1]
        http.shutdown()


@pytest.mark.parametrize("kind", KINDS)
def test_the_client_of_prefect_reaches_servers_of_this_machine_past_every_kind_of_proxy(
    no_proxies, server, kind
):
    no_proxies.setenv(kind, DEAD)
    with httpx.Client() as client, pytest.raises(httpx.ConnectError):
        client.get(f"http://127.0.0.1:{server}" if kind.lower() != "https_proxy" else "https://localhost:1")
    for name, value in direct_environment({kind: DEAD}).items():
        no_proxies.setenv(name, value)
    with httpx.Client() as client:
        for host in ("127.0.0.1", "localhost"):
            assert client.get(f"http://{host}:{server}").status_code == 204


def test_urllib_requests_and_botocore_are_told_the_same(no_proxies):
    for name, value in direct_environment({"http_proxy": DEAD}).items():
        no_proxies.setenv(name, value)
    for host in ("127.0.0.1:9000", "localhost:9000", socket.gethostname()):
        assert urllib.request.proxy_bypass(host)  # botocore calls it too
        assert should_bypass_proxies(f"http://{host}/bucket", None)
    assert should_bypass_proxies("http://[::1]:9000/bucket", None)
    assert not urllib.request.proxy_bypass("example.org")


def test_the_address_at_which_ray_listens_is_reached_directly():
    from ray.util import get_node_ip_address

    assert get_node_ip_address() in direct_environment({"http_proxy": DEAD})["no_proxy"].split(",")


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_what_the_user_excludes_from_the_proxy_stays_first_in_both_spellings(name):
    found = direct_environment({"HTTPS_PROXY": DEAD, name: " .corp.example, 10.0.0.0/8,localhost"})
    assert set(found) == {"no_proxy", "NO_PROXY"}
    for value in found.values():
        assert value.startswith(".corp.example,10.0.0.0/8,localhost,127.0.0.1,::1,")


def test_each_spelling_keeps_its_own_value_if_both_are_set():
    found = direct_environment({"http_proxy": DEAD, "no_proxy": "a.example", "NO_PROXY": "b.example"})
    assert found["no_proxy"].startswith("a.example,localhost")
    assert found["NO_PROXY"].startswith("b.example,localhost")


@pytest.mark.parametrize(
    "environment",
    [{}, {"NO_PROXY": "a.example"}, {"http_proxy": ""}, {"http_proxy": DEAD, "no_proxy": "*"}],
    ids=["no proxy", "only an exception", "an empty proxy", "an exception for everything"],
)
def test_nothing_changes_where_no_proxy_is_in_the_way(environment):
    assert direct_environment(environment) == {}


def test_a_second_call_changes_nothing_more():
    first = {"http_proxy": DEAD, **direct_environment({"http_proxy": DEAD})}
    assert {**first, **direct_environment(first)} == first


def test_servers_on_other_addresses_of_loopback_are_reached_directly():
    environment = {
        "http_proxy": DEAD,
        "AWS_ENDPOINT_URL": "http://127.0.0.2:9000",
        "PREFECT_API_URL": "http://prefect.localhost:4200/api",
        "RAY_ADDRESS": "127.0.0.3:6379",
        "HF_ENDPOINT": "https://hub.example.org",
    }
    excluded = direct_environment(environment)["no_proxy"].split(",")
    assert {"127.0.0.2", "prefect.localhost", "127.0.0.3"} <= set(excluded)
    assert "hub.example.org" not in excluded


@pytest.mark.parametrize(
    "proxy", ["socks5://127.0.0.1:7890", "socks4://a:1", "ftp://proxy:21", "http://proxy:port"]
)
def test_a_proxy_with_which_the_client_of_prefect_would_not_start_is_named(no_proxies, proxy):
    no_proxies.setenv("all_proxy", proxy)
    with pytest.raises((ImportError, ValueError, httpx.InvalidURL)):
        httpx.Client()
    assert useless_proxies({"all_proxy": proxy}) == ["all_proxy"]


@pytest.mark.parametrize("proxy", ["proxy:8080", "http://proxy:8080", "HTTPS://user:word@proxy.example"])
def test_a_proxy_with_which_it_starts_is_kept(no_proxies, proxy):
    no_proxies.setenv("http_proxy", proxy)
    httpx.Client().close()
    assert proxy_variables({"http_proxy": proxy, "no_proxy": "a"}) == ["http_proxy"]
    assert useless_proxies({"http_proxy": proxy}) == []


@pytest.mark.parametrize("name", ["SOCKS_PROXY", "ftp_proxy", "CI_REVERSE_PROXY", "rsync_proxy"])
def test_a_variable_of_another_program_is_left_alone(name):
    environment = {name: "socks5://127.0.0.1:7890"}
    assert proxy_variables(environment) == useless_proxies(environment) == []
    assert direct_environment(environment) == {}
