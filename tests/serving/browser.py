"""A real browser, driven through chromedriver by the WebDriver protocol (W3C), which is JSON over HTTP: no package is needed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Name of an element's identity, fixed by the protocol."""
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1100,900"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


def missing() -> str | None:
    """Why no browser can be driven here; None where one can."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(absent)} not installed (Debian: chromium chromium-driver)" if absent else None


class Browser:
    """One window. `with Browser(folder) as browser: ...`"""

    def __init__(self, profile: Path) -> None:
        self._profile = profile

    def __enter__(self) -> Browser:
        self._driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._driver.stdout is not None
        for line in self._driver.stdout:
            if "started successfully on port" in line:
                port = int(line.strip().rstrip(".").rpartition(" ")[2])
                self._base = f"http://127.0.0.1:{port}"
                break
        options = {"binary": shutil.which("chromium"), "args": [*_FLAGS, f"--user-data-dir={self._profile}"]}
        capabilities = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self._session = ""
        try:
            self._session = "/session/" + self._call("POST", "/session", {"capabilities": capabilities})["sessionId"]
        except OSError:
            self._driver.kill()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        try:
            if self._session:
                self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(20)

    def open(self, address: str) -> None:
        self._call("POST", "/url", {"url": address})

    def type(self, selector: str, text: str) -> None:
        """Keys into a field; the path of a file into a file chooser."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def texts(self, selector: str) -> list[str]:
        return self.run(f"return [...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)")

    def run(self, script: str) -> Any:
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def wait_for(self, script: str, seconds: float = 90) -> None:
        """Until the expression is true."""
        deadline = time.monotonic() + seconds
        while not self.run(f"return !!({script})"):
            assert time.monotonic() < deadline, f"{script} never came true; the page says {self.texts('body')}"
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def _find(self, selector: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def _call(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self._base}{self._session}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=180) as answer:
            return json.loads(answer.read())["value"]
