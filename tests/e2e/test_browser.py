"""The report and the dashboard in Chromium, which reaches this machine only: `make test-browser`."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from helpers.job import CHATS

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test-browser")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("there is no Chromium: apt-get install chromium", allow_module_level=True)

PROJECT = CHATS.parents[1]
WIDTHS = [390, 768, 1366]
# The contrast of text to the background behind it, as WCAG computes it, for all visible texts; the worst one.
WORST_CONTRAST = """() => {
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
        .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    let worst = [21, ""];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || element.closest("svg, style")) continue;
        let behind = element;
        while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
        const back = light(behind ? parse(getComputedStyle(behind).backgroundColor) : [255, 255, 255]);
        const front = light(parse(getComputedStyle(element).color));
        const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        if (contrast < worst[0]) worst = [contrast, element.textContent];
    }
    return worst;
}"""


@contextmanager
def open_page(url: str, width: int, scheme: str = "light", height: int = 900) -> Iterator[Any]:
    """Open a page, and check that it caused no error and asked no other machine for anything."""
    refused: list[str] = []
    errors: list[str] = []

    def answer(route: Any) -> None:
        if urlsplit(route.request.url).hostname in (None, "", "127.0.0.1"):
            route.continue_()
        else:
            refused.append(route.request.url)
            route.abort()

    with playwright.sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.route("**/*", answer)
        page = context.new_page()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
        browser.close()
    assert (refused, errors) == ([], [])


@pytest.fixture(scope="module")
def report(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("report") / "report.html"
    command = [sys.executable, str(CHATS), "report", "--sandbox", "--database", str(demo), "--out", str(page)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_report_is_readable_on_every_screen_without_network(report: Path, width: int, scheme: str) -> None:
    with open_page(report.as_uri(), width, scheme) as page:
        assert page.locator("h2").all_inner_texts()[:2] == ["Waiting on us", "Messages by day"]
        assert page.locator(".figure strong").all_inner_texts()[0] not in ("", "0")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        contrast, text = page.evaluate(WORST_CONTRAST)
        assert contrast >= 4.5, text


@pytest.fixture(scope="module")
def dashboard(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database = tmp_path_factory.mktemp("dashboard") / "demo.duckdb"
    database.write_bytes(demo.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "marimo", "run", "notebooks/explore.py", "--headless", "--no-token"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--", "--database", str(database)]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: httpx.get(f"{url}/health").status_code == 200)
            yield url
        finally:
            server.terminate()


def wait_for(is_done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if is_done():
                return
        time.sleep(0.2)
    raise TimeoutError


@pytest.mark.parametrize("width", WIDTHS)
def test_dashboard_fits_every_screen(dashboard: str, width: int) -> None:
    with open_page(dashboard, width, "dark" if width == 768 else "light", height=6000) as page:
        page.get_by_role("heading", name="Your own queries").wait_for(timeout=120_000)
        wait_for(lambda: page.locator("canvas, svg.marks").count() >= 6)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        headings = page.locator("h2").all_inner_texts()
        assert headings.index("Chats waiting on us") < headings.index("Message volume")


def test_chat_is_opened_from_the_list_and_number_filters(dashboard: str) -> None:
    with open_page(dashboard, 1366, height=6000) as page:
        page.get_by_role("heading", name="Your own queries").wait_for(timeout=120_000)
        figure = page.locator("marimo-stat, .mo-stat, div", has_text="Messages to us").last
        before = figure.locator("xpath=..").inner_text()
        page.locator("marimo-dropdown select, select").first.select_option(index=1)
        wait_for(lambda: figure.locator("xpath=..").inner_text() != before)
        page.get_by_role("row").nth(1).get_by_role("checkbox").click()
        page.get_by_text("the latest messages first").wait_for(timeout=60_000)
