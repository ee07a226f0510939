"""A headless Chromium, controlled over the DevTools protocol."""

import base64
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --remote-debugging-port=0 --hide-scrollbars"

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no Chromium on this machine (apt-get install chromium)"
)


class Tab:
    """One tab of a headless Chromium."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.numbers = socket, itertools.count(1)
        self.events: list[dict[str, Any]] = []  # of the domains that are enabled, such as Network

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol and return its result."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def run(self, script: str) -> Any:
        """Evaluate a script in the page and return its value."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Evaluate a script until its value is true, and return that; fail after `seconds` with the page's text."""
        until = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < until, f"{script} of {self.run('document.body?.innerText')!r:.2000}"
            time.sleep(0.1)
        return value

    def open(self, address: str) -> None:
        """Open an address and wait until its document is loaded."""
        self.call("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href !== 'about:blank' /* {address} */")

    def click(self, x: float, y: float) -> None:
        """Press and release the left button of the mouse at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str, code: int) -> None:
        """Press and release a key. Enter activates what has the focus, as on a keyboard."""
        down = {"type": "keyDown", "text": "\r"} if key == "Enter" else {"type": "rawKeyDown"}
        for kind in (down, {"type": "keyUp"}):
            self.call("Input.dispatchKeyEvent", key=key, code=key, windowsVirtualKeyCode=code, **kind)

    def type(self, text: str) -> None:
        """Type a text into the element that has the focus."""
        self.call("Input.insertText", text=text)

    def centre_of(self, selector: str) -> list[float]:
        """Scroll an element into view; return the coordinates of its centre, and its width."""
        return self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2, b.width]; })()"
        )

    def screenshot(self) -> Image.Image:
        """Return what the window shows."""
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        return Image.open(io.BytesIO(data)).convert("RGB")

    def pixel_colours(self, selector: str) -> list[Any]:
        """Return the colours of an image at 1/4 and 3/4 of its width."""
        x, y, width = self.centre_of(selector)
        shot = self.screenshot()
        return [shot.getpixel((round(x + part * width), round(y))) for part in (-0.25, 0.25)]


@contextmanager
def opened_tab(
    home: Path, address: str = "about:blank", *, width: int = 1400, height: int = 900
) -> Iterator[Tab]:
    """Start Chromium with a window of this size in pixels and a profile in `home`; end it afterwards."""
    from websockets.sync.client import connect

    command = [
        "chromium",
        *FLAGS.split(),
        f"--user-data-dir={home}",
        f"--window-size={width},{height}",
        address,
    ]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "HOME": str(home)}
    ) as browser:
        try:
            assert browser.stderr is not None
            port = next(
                found[1] for line in browser.stderr if (found := re.search(r"127\.0\.0\.1:(\d+)/", line))
            )
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
                targets = [target for target in json.load(answer) if target["type"] == "page"]
            with connect(targets[0]["webSocketDebuggerUrl"], max_size=None, open_timeout=60) as socket:
                yield Tab(socket)
        finally:
            browser.terminate()
