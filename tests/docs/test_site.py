"""The built site: strict, and each page in a browser, narrow and wide, light and dark, without a request elsewhere."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clocks import PATIENCE_SECONDS
from tests.docs.pages import REPOSITORY, nav

pytestmark = pytest.mark.slow
WIDTHS = (400, 1400)
SCHEMES = {"light": "default", "dark": "slate"}
PAGES = [name.removesuffix(".md") + ".html" for name in nav()]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """A handler that logs nothing."""

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def chromium() -> str | None:
    """Return the path of a Chromium: the one that CHROMIUM names, or one on the path; None without one."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if name and (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site."""
    pytest.importorskip("mkdocs", reason="the docs extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site on the loopback interface and yield its address."""
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start a headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the docs extra is not installed")
    program = chromium()
    if program is None:
        pytest.skip("there is no Chromium: install one, or name it with CHROMIUM")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_pages_of_the_navigation_are_built(site: Path) -> None:
    assert [page for page in PAGES if not (site / page).is_file()] == []


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_have_no_errors_and_load_nothing_from_other_hosts(
    browser: Any, address: str, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    aborted = "net::ERR_ABORTED"  # By the next page, before it was needed.
    page.on("requestfailed", lambda asked: asked.failure == aborted or complaints.append(f"failed: {asked.url}"))
    page.on("response", lambda answer: answer.status < 400 or complaints.append(f"{answer.status}: {answer.url}"))
    local = (address, "data:", "blob:")
    page.on("request", lambda asked: asked.url.startswith(local) or complaints.append(f"another host: {asked.url}"))
    for name in PAGES:
        page.goto(f"{address}/{name}", wait_until="load")
        assert page.get_attribute("body", "data-md-color-scheme") == SCHEMES[scheme], name
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name} is {wide} pixels wide in a window of {width}"
        broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
        assert broken == [], name
        assert complaints == [], name
    context.close()


def test_search_finds_a_setting(browser: Any, address: str) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(PATIENCE_SECONDS * 1000)
    page = context.new_page()
    page.goto(f"{address}/index.html", wait_until="load")
    page.fill("input[name=query]", "loop-guard")
    page.wait_for_selector(".md-search-result__link[href*='reference/settings.html']")
    context.close()
