"""Headless Chromium as a person uses it: a page is opened, fields are focused, keys are pressed.

The browser is spoken to in its own protocol (chromedevtools.github.io/devtools-protocol), as JSON texts that end in a
zero byte, over two pipes that it finds as file descriptors 3 and 4: no driver, no port, no further package.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]  # fmt: skip
KEYS = {"ArrowDown": 40, "Home": 36}


class Browser:
    """Opens `page`, a file or an address, in a window of `size` pixels, with an empty profile in `folder`.

    asked_for: every address that the page has asked for, itself included.
    """

    def __init__(self, page: Path | str, folder: Path, size: tuple[int, int] = (1100, 1600), patience: float = 120.0):
        given, self.sending = os.pipe()
        self.reading, writing = os.pipe()
        self.patience, self.number, self.rest = patience, 0, b""
        self.asked_for: list[str] = []
        call = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}"]
        redirected = ["bash", "-c", f'exec "$@" 3<&{given} 4>&{writing}', "bash", *call]
        self.process = subprocess.Popen(
            redirected, pass_fds=(given, writing), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(given)
        os.close(writing)
        try:
            self._open(page, size)
        except BaseException:
            self.close()
            raise

    def _open(self, page: Path | str, size: tuple[int, int]) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Network.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride", width=size[0], height=size[1], deviceScaleFactor=1, mobile=False
        )
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self.wait_for("document.readyState == 'complete' && location.protocol != 'about:'")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.sending)
        os.close(self.reading)

    def call(self, method: str, **arguments):
        """A method's result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": arguments}
        if hasattr(self, "session"):
            message["sessionId"] = self.session
        os.write(self.sending, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self.number:
            if answer.get("method") == "Network.requestWillBeSent":
                self.asked_for.append(answer["params"]["request"]["url"])
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _message(self):
        end = time.monotonic() + self.patience
        while b"\0" not in self.rest:
            if not select.select([self.reading], [], [], max(0, end - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self.reading, 1 << 16)
            if not part:
                raise RuntimeError("Chromium has ended")
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        return json.loads(text)

    def run(self, code: str):
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait_for(self, code: str) -> None:
        """Waits until a JavaScript expression is true in the page."""
        end = time.monotonic() + self.patience
        while not self.run(code):
            if time.monotonic() > end:
                raise TimeoutError(f"in Chromium it has not come to {code}")
            time.sleep(0.05)

    def press(self, key: str) -> None:
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def choose(self, select: str, place: int) -> None:
        """The option at `place` of the <select> with this id, by the keyboard: first to the top, then down."""
        self.run(f"document.getElementById({json.dumps(select)}).focus()")
        self.press("Home")
        for _ in range(place):
            self.press("ArrowDown")

    def screenshot(self) -> bytes:
        """PNG of the window."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
