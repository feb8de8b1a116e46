"""Headless Chromium over its debugging pipe: no port, no driver, no package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    """The browser's program, if this machine has one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass
class Page:
    """One page; what its console said is in `complaints`, what it asked for in `requests`."""

    to: IO[bytes]
    back: IO[bytes]
    session: str = ""
    number: int = 0
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; events on the way are noted."""
        self.number += 1
        told = {"id": self.number, "method": method, "params": parameters}
        self.to.write(
            json.dumps({**told, "sessionId": self.session} if self.session else told).encode() + b"\0"
        )
        self.to.flush()
        while True:
            message = self._receive()
            if message.get("id") == self.number:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message)

    def run(self, script: str) -> Any:
        """The value of an expression, promises awaited."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def open(self, path: Path) -> None:
        """Opens a file and waits until its script has said that it is ready."""
        self.send("Page.navigate", url=path.resolve().as_uri())
        ready = "document.body && document.body.dataset.ready"
        self.run(
            f"new Promise(done => {{ const look = () => {ready} ? done(true) : setTimeout(look, 10); look(); }})"
        )

    def _receive(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self.back.read(1)) != b"\0":
            assert byte, "the browser is gone"
            data += byte
        return dict(json.loads(data))

    def _note(self, message: dict[str, Any]) -> None:
        method, told = message.get("method", ""), message.get("params", {})
        if method == "Runtime.exceptionThrown" or (
            method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert")
        ):
            self.complaints.append(json.dumps(told)[:500])
        if method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(told["entry"]["text"])
        if method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])


@contextmanager
def page(profile: Path, width: int = 1280, height: int = 900) -> Iterator[Page]:
    """A fresh browser with one page."""
    program = find()
    assert program is not None
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()
    command = [
        program,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        f"--user-data-dir={profile}",
        f"--window-size={width},{height}",
        "--remote-debugging-pipe",
        "about:blank",
    ]

    def wire() -> None:
        """Chromium reads commands from descriptor 3 and answers on 4."""
        given_in, given_out = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(given_in, 3)
        os.dup2(given_out, 4)

    process = subprocess.Popen(
        command, preexec_fn=wire, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        with os.fdopen(to, "wb") as writer, os.fdopen(back, "rb") as reader:
            found = Page(writer, reader)
            target = found.send("Target.createTarget", url="about:blank")["targetId"]
            found.session = found.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Runtime", "Log", "Page", "Network"):
                found.send(f"{domain}.enable")
            yield found
    finally:
        process.kill()
        process.wait()
