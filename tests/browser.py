"""A real Chromium without a window, driven by its own protocol over two pipes: nothing but the browser is needed."""

import base64
import contextlib
import json
import os
import shutil
import subprocess

from tests.waiting import wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")


class Browser:
    """One tab.

    Attributes:
        requests: addresses that the page asked for.
        problems: what the page wrote into its console, refusals by its policy included, and what it threw.
    """

    def __init__(self, profile, *, width, height, dark=False):
        (read, self._commands), (self._answers, write) = os.pipe(), os.pipe()
        self._answered = os.fdopen(self._answers, "rb")
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{read} 4>&{write}', CHROMIUM, *OPTIONS]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._count, self._session, self.requests, self.problems = 0, None, [], []
        target = next(one for one in self("Target.getTargets")["targetInfos"] if one["type"] == "page")
        self._session = self("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self(f"{domain}.enable")
        mobile = width < 600
        self(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1 + mobile,
            mobile=mobile,
        )
        self(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" * dark or "light"}]
        )

    def __call__(self, method, **given):
        """The answer to a command of the protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": given}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            self._note(answer.get("method"), answer.get("params"))
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def open(self, address):
        """A new page, even where only what follows # is another."""
        for url in ("about:blank", address):
            self("Page.navigate", url=url)
            self.until(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def js(self, expression):
        """The value of an expression."""
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression, seconds=60):
        wait_until(lambda: self.js(expression), seconds)

    def press(self, key, code, text=""):
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if kind == "keyDown" and text else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **typed)

    def drop(self, file, x, y):
        """Drop a file on a point of the window."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def screenshot(self, file):
        """The whole page."""
        size = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        with contextlib.suppress(OSError):
            self("Browser.close")
        os.close(self._commands)
        self._process.wait(30)
        self._answered.close()

    def _next(self):
        message = bytearray()
        while (letter := self._answered.read(1)) != b"\0":
            if not letter:
                raise OSError("the browser has ended")
            message += letter
        return json.loads(message)

    def _note(self, method, given):
        if method == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif method == "Log.entryAdded":
            self.problems.append(given["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(given["exceptionDetails"]))
