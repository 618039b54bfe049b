"""The page: it needs nothing from elsewhere, and works in a browser."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from fastapi.testclient import TestClient
from test_reranking import RERANK, asker, last_first

from raysys.serving.doors import Allowances, Gate, digest_of
from raysys.serving.holder import Holder
from raysys.serving.settings import ServeSettings
from raysys.serving.web import web_app
from raysys.settings import parse_settings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


def test_the_page_is_whole_and_runs_only_its_own(client: TestClient) -> None:
    answer = client.get("/", headers={"Authorization": ""})
    assert answer.status_code == 200
    assert not re.search(r"(src|href)=|https?://|innerHTML|eval\(", answer.text)
    policy = answer.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_titles_are_found(client: TestClient) -> None:
    found = client.get("/v1/items?title=D").json()["items"]
    assert found == [{"item_id": "d", "title": "D"}]
    assert client.get("/v1/items?title=<SCRIPT").json()["items"][0]["item_id"] == "c"
    assert client.get("/v1/items?title=").status_code == 422


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    """The routes with a language model, behind a real port."""
    values = {"run": run, "rerank": RERANK}
    settings = parse_settings(ServeSettings, values, source="test")
    shared = Allowances(1e6, 1_000_000)

    async def lease(name: str, wanted: int) -> int:
        return shared.lease(name, wanted)

    gate = Gate(lease, 1e6, 1_000_000)
    web = web_app(
        settings, {digest_of("secret"): "test"}, gate, Holder(settings, asker(last_first))
    )
    server = uvicorn.Server(uvicorn.Config(web, "127.0.0.1", free_port(), log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.config.port}"
    server.should_exit = True
    thread.join()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


@needs_browser
def test_a_person_gets_a_list_and_reasons(address: str, tmp_path: Path) -> None:
    steps = [
        "at('key').value = 'secret'; at('search').value = 'a'; at('search').oninput(); 1",
        "at('hits').querySelector('button').click(); at('go').onclick()",
        "at('why').onclick()",
    ]
    texts = asyncio.run(in_browser(address, steps, tmp_path, os.environ.get("RAYSYS_SCREENSHOT")))
    assert "A" in texts[0]
    assert "by what you like, reranked" in texts[1]
    assert "<script>" in texts[1]
    assert "▲ from 3" in texts[1]
    assert "Recommended from what you liked" in texts[2]


@needs_browser
def test_a_wrong_key_is_told(address: str, tmp_path: Path) -> None:
    steps = ["at('key').value = 'wrong'; at('user').value = 'u2'; at('go').onclick()"]
    (text,) = asyncio.run(in_browser(address, steps, tmp_path, None))
    assert "send a key" in text


async def in_browser(
    address: str, steps: list[str], folder: Path, screenshot: str | None
) -> list[str]:
    """What the page shows after each step."""
    port = free_port()
    options = [
        "--headless=new",
        "--no-sandbox",
        "--window-size=900,900",
        "--disable-gpu",
        f"--user-data-dir={folder}",
    ]
    process = subprocess.Popen(
        [str(CHROMIUM), *options, f"--remote-debugging-port={port}", f"{address}/"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession() as session:
            page = await _page(session, port, address)
            async with session.ws_connect(page, max_msg_size=0) as socket_:
                return await _steps(socket_, steps, screenshot)
    finally:
        process.terminate()
        process.wait(20)


async def _page(session: aiohttp.ClientSession, port: int, address: str) -> str:
    for _ in range(300):
        await asyncio.sleep(0.1)
        try:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                for one in await answer.json():
                    if one["url"].startswith(address):
                        found: str = one["webSocketDebuggerUrl"]
                        return found
        except aiohttp.ClientError:
            continue
    raise AssertionError("chromium did not open the page")


async def _steps(
    socket_: aiohttp.ClientWebSocketResponse, steps: list[str], screenshot: str | None
) -> list[str]:
    numbers = itertools.count(1)

    async def call(method: str, **parameters: Any) -> dict[str, Any]:
        number = next(numbers)
        await socket_.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await socket_.receive(30)).data)
            if message.get("id") == number:
                found: dict[str, Any] = message["result"]
                return found

    async def run(code: str) -> Any:
        found = await call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    while await run('typeof at === "function" && document.readyState') != "complete":
        await asyncio.sleep(0.05)
    texts = []
    for step in steps:
        await run(step)
        await asyncio.sleep(0.6)
        texts.append(await run("document.body.innerText"))
    if screenshot:
        data = (await call("Page.captureScreenshot"))["data"]
        Path(screenshot).write_bytes(base64.b64decode(data))
    return texts
