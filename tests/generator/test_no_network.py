"""No network: neither the generator nor the package imports what could, and neither opens a socket."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NETWORK = {
    "socket",
    "ssl",
    "http",
    "urllib",
    "ftplib",
    "smtplib",
    "xmlrpc",
    "socketserver",
    "asyncio",
    "requests",
    "httpx",
}

# Refuses what Python's sockets do and says so, also where the caller swallows the error.
REFUSE = """\
import sys
def hook(event, arguments):
    if event.startswith("socket.") and event not in ("socket.gethostname",):
        print("NETWORK", event, arguments, file=sys.stderr, flush=True)
        raise PermissionError(event)
sys.addaudithook(hook)
"""


def imports(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            yield from ((path, name.partition(".")[0]) for name in names)


@pytest.mark.parametrize("folder", ["codegen", "templates", "generated/normgate"])
def test_nothing_that_could_is_imported(folder: str) -> None:
    found = list(imports(ROOT / folder))
    assert found or folder == "templates"
    assert [(path, name) for path, name in found if name in NETWORK] == []


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REFUSE + script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_hook_refuses() -> None:
    done = run("import socket; socket.create_connection(('localhost', 9))")
    assert done.returncode == 1 and "NETWORK socket." in done.stderr


def test_generating_opens_no_socket(small_spec: Path, tmp_path: Path) -> None:
    script = "from codegen.cli import main; sys.exit(main(sys.argv[1:], 'build.py'))"
    done = run(script, "generate", "--spec", small_spec, "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out/normgate/manifest.json").is_file()


def test_the_package_opens_no_socket() -> None:
    """Import, the operators of every model, explain."""
    script = "sys.path.insert(0, 'generated'); from normgate.__main__ import main; sys.exit(main(['doctor']))"
    done = run(script)
    assert done.returncode == 0 and "NETWORK" not in done.stderr, done.stderr
