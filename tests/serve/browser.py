"""A headless Chromium, driven by the DevTools protocol over two pipes: no driver, no port, no other package."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager

import pytest

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")


@contextmanager
def open_page(url, folder, *, width=1100, height=900, dark=False, ready="#model option"):
    """Open a page and wait for an element of it; skips where there is no browser."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("there is no browser (./dev browser installs one)")
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
               "--disable-background-networking", f"--user-data-dir={folder}", f"--window-size={width},{height}",
               "--remote-debugging-pipe", "about:blank"]  # fmt: skip
    # Chromium reads commands from descriptor 3 and writes to 4.
    script = f'exec 3<&{their_in} 4>&{their_out}; exec "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=(their_in, their_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(their_in)
    os.close(their_out)
    try:
        yield Page(os.fdopen(our_out, "wb", 0), os.fdopen(our_in, "rb"), url, width, height, dark, ready)
    finally:
        process.kill()
        process.wait()


class Page:
    """A tab; what it logs to its console, and the addresses it requests, are kept."""

    def __init__(self, commands, answers, url, width, height, dark, ready):
        self._commands, self._answers, self._numbers, self._session = commands, answers, itertools.count(1), None
        self.console, self.requests = [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && document.querySelectorAll({json.dumps(ready)}).length > 0")

    def send(self, method, **parameters):
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        while True:
            data = bytearray()
            while not data.endswith(b"\0"):
                byte = self._answers.read(1)
                assert byte, "the browser has ended"
                data += byte
            answer = json.loads(data[:-1])
            self._note(answer)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _note(self, event):
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(event["params"]["request"]["url"])
        if event.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.console.append(json.dumps(event["params"]))

    def run(self, script):
        """Evaluate JavaScript and return its value."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script, seconds=20):
        """Wait until an expression is true."""
        for _ in range(int(seconds * 20)):
            if self.run(script):
                return
            time.sleep(0.05)
        raise AssertionError(f"{script} did not become true; console: {self.console}")

    def type(self, selector, text):
        """Replace the text of an input as a user does."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus(); document.activeElement.select()")
        self.send("Input.insertText", text=text)

    def press(self, key, modifiers=0):
        """Press a key: a character, or one of those named here."""
        code = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}.get(key) or ord(key.upper())
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=modifiers)

    def drag(self, start, end):
        """Move the mouse with its button down from one point of the window to another."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def choose(self, selector, value):
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.value = {json.dumps(value)}; {element}.dispatchEvent(new Event('change'))")

    def screenshot(self, path, form="webp"):
        size = self.run("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.run("innerWidth"), "height": size, "scale": 1}
        shot = self.send("Page.captureScreenshot", format=form, clip=clip, captureBeyondViewport=True,
                         **({"quality": 80} if form == "webp" else {}))  # fmt: skip
        path.write_bytes(base64.b64decode(shot["data"]))
