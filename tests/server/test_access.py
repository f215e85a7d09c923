"""Who may use the server: names of this machine, no web pages, the token."""

from __future__ import annotations

import pytest

import qwchat
from tests.server.serving import Serving, serving

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8080", "localhost", "LOCALHOST:8080", "[::1]", "[::1]:8080", " localhost "]
)
def test_names_of_this_machine(served: Serving, host: str) -> None:
    assert served.client.get("/v1/models", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1:9090", "localhost.evil.example", "127.0.0.1@evil", "", "::1"],
)
def test_a_name_that_a_page_made_mean_this_machine_is_refused(served: Serving, host: str) -> None:
    # A page of evil.example may let that name mean 127.0.0.1, and then has the same origin as this server.
    answer = served.client.get("/v1/models", headers={"Host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["message"] == "the Host header does not name this machine: use 127.0.0.1 or localhost"


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:8080"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_web_pages_are_refused(served: Serving, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/metrics"), ("OPTIONS", "/v1/chat/completions"), ("POST", "/v1/chat/completions")):
        answer = served.client.request(method, path, headers=headers)
        assert answer.status_code == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_a_page_is_refused(served: Serving, kind: str) -> None:
    # A browser sends these types to other origins without asking.
    answer = served.client.post("/v1/completions", content=b'{"prompt": "x"}', headers={"Content-Type": kind})
    assert answer.status_code == 415


def test_the_token(mini: qwchat.Model) -> None:
    with serving(mini, token=TOKEN) as running:
        for given in (
            "",
            "Bearer",
            f"Bearer {TOKEN}x",
            f"Basic {TOKEN}",
            f"Bearer {TOKEN[:-1]}",
            "Bearer ümläut",
            TOKEN,
        ):
            headers = {"Authorization": given.encode()} if given else {}
            answer = running.client.get("/v1/models", headers=headers)  # type: ignore[arg-type]
            assert answer.status_code == 401, given
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.text
        for given in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"Bearer  {TOKEN} "):
            assert running.client.get("/v1/models", headers={"Authorization": given}).status_code == 200
        assert running.client.get("/health").status_code == 200
        assert running.client.get("/metrics").status_code == 401
