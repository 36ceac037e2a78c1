"""A real browser, where this machine has one: chromedriver's own protocol (W3C WebDriver) spoken with httpx."""

import base64
import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import waiting

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the standard's name of an element's reference
KEYS = {
    "Control": "\ue009",
    "Enter": "\ue007",
    "Escape": "\ue00c",
    "ArrowLeft": "\ue012",
    "ArrowRight": "\ue014",
    "Tab": "\ue004",
}
# Gives the page files as if they were dropped on it.
DROP = """
const [name, type, text] = arguments, moved = new DataTransfer();
moved.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, {type}));
for (const kind of ["dragenter", "dragover", "drop"])
  document.body.dispatchEvent(new DragEvent(kind, {bubbles: true, cancelable: true, dataTransfer: moved}));
"""


def missing() -> str:
    """Why there is no browser here; empty where there is one."""
    absent = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
    return f"{' and '.join(absent)} not installed (Debian: apt-get install chromium chromium-driver)" if absent else ""


class Browser:
    """One window. A command that the driver refuses raises AssertionError."""

    def __init__(self, client: httpx.Client) -> None:
        self.client, self.session = client, ""

    def say(self, method: str, path: str, **body: Any) -> Any:
        """One command of the protocol, its value."""
        answer = self.client.request(method, f"{self.session}{path}", json=body if method == "POST" else None)
        assert answer.status_code == 200, answer.text[:600]
        return answer.json()["value"]

    def open(self, url: str) -> None:
        self.say("POST", "/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script with a `return` gives."""
        return self.say("POST", "/execute/sync", script=script, args=list(arguments))

    def wait(self, script: str) -> None:
        """Until a script calls `done`."""
        self.say("POST", "/execute/async", script=f"const done = arguments[0]; {script}", args=[])

    def cdp(self, command: str, **params: Any) -> Any:
        """A command of the DevTools protocol."""
        return self.say("POST", "/goog/cdp/execute", cmd=command, params=params)

    def until(self, expression: str) -> Any:
        """The value of a JavaScript expression once it is true."""
        said = "return document.getElementById('said')?.textContent"
        return waiting.until(
            lambda: self.run(f"return {expression}"),
            lambda: f"{expression} did not come true; the page says {self.run(said)!r}",
        )

    def find(self, selector: str) -> str:
        found = self.say("POST", "/element", using="css selector", value=selector)
        return f"/element/{found[ELEMENT]}"

    def click(self, selector: str) -> None:
        self.say("POST", f"{self.find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Text in place of what is in a field, key by key."""
        field = self.find(selector)
        self.say("POST", f"{field}/clear")
        self.say("POST", f"{field}/value", text=text)

    def press(self, *names: str) -> None:
        """Keys, all down and then all up, wherever the focus is."""
        keys = [KEYS.get(name, name) for name in names]
        strokes = [{"type": "keyDown", "value": k} for k in keys] + [{"type": "keyUp", "value": k} for k in reversed(keys)]
        self.say("POST", "/actions", actions=[{"type": "key", "id": "keyboard", "actions": strokes}])

    def drop(self, content: bytes, name: str = "picture.png", kind: str = "image/png") -> None:
        """A file dropped on the page."""
        self.run(DROP, name, kind, base64.b64encode(content).decode())

    def value(self, name: str) -> str:
        """What is in the field of this id."""
        return str(self.run("return document.getElementById(arguments[0]).value", name))

    def text(self, name: str) -> str:
        """What the element of this id says."""
        return str(self.run("return document.getElementById(arguments[0]).textContent", name))

    def complaints(self) -> list[str]:
        """Errors on the console since the last look, less answers with a refusing status."""
        entries = self.say("POST", "/se/log", type="browser")
        return [e["message"] for e in entries if e["level"] == "SEVERE" and "Failed to load resource" not in e["message"]]

    def shoot(self, path: Path, width: int, height: int, dark: bool = False) -> None:
        """A screenshot of the window at this size (CSS pixels)."""
        self.cdp(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        )
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.until(f"innerWidth === {width} && matchMedia('(prefers-color-scheme: dark)').matches === {str(dark).lower()}")
        self.wait("requestAnimationFrame(() => requestAnimationFrame(done))")  # it is laid out and drawn so
        path.write_bytes(base64.b64decode(self.say("GET", "/screenshot")))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A headless Chromium with a profile of its own, for as long as this lasts."""
    with tempfile.TemporaryDirectory(prefix="dovetail-browser-", ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert driver.stdout
            port = next(found[1] for line in driver.stdout if (found := re.search(r"started successfully on port (\d+)", line)))
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=waiting.CEILING, trust_env=False) as client:
                window = Browser(client)
                window.session = f"/session/{window.say('POST', '/session', capabilities=_wanted(profile))['sessionId']}"
                try:
                    yield window
                finally:
                    window.say("DELETE", "")
        finally:
            driver.terminate()
            driver.communicate()


def _wanted(profile: str) -> dict[str, Any]:
    # Root has no sandbox of Chromium's own, and a container's /dev/shm is small.
    flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server"]
    options = {"binary": shutil.which("chromium"), "args": [*flags, f"--user-data-dir={profile}", "--window-size=1280,900"]}
    wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    return {"alwaysMatch": wanted | {"timeouts": {"script": 1000 * int(waiting.CEILING)}}}
