"""A picture of a report, as Chromium shows it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ..errors import ToolError
from ..output import replace_whole

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_INSTALL = "apt-get install chromium"
_FIRST_SCREENS = (1280, 1480)
_SECONDS = 120

# No first run, no network, nothing kept: a profile of its own is thrown away.
QUIET = (
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
    "--no-sandbox",  # it may run as root, in a container; the page is our own
)


def find_chromium() -> str | None:
    """The browser's program; None where none is installed."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


def take(page: Path, picture: Path) -> None:
    """Write the page's first screens as PNG. ToolError where there is no browser, it fails, or the file cannot be
    written.
    """
    program = find_chromium()
    if program is None:
        raise ToolError(f"--screenshot needs Chromium, and there is none of {', '.join(_NAMES)}: {_INSTALL}")
    width, height = _FIRST_SCREENS
    with tempfile.TemporaryDirectory(prefix="normgate-") as work:
        shot = Path(work, "shot.png")
        command = [
            program, "--headless", *QUIET, f"--user-data-dir={work}/profile", "--hide-scrollbars",
            f"--window-size={width},{height}", f"--screenshot={shot}", page.resolve().as_uri(),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ToolError(f"{program} took no picture: {error}") from None
        if done.returncode or not shot.is_file():
            raise ToolError(f"{program} took no picture: {done.stderr.strip()[-500:]}")
        replace_whole(picture, shot.read_bytes())
