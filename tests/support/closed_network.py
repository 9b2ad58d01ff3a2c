"""An environment with every way to the network closed, which notes what tries one.

Where the tests run as root, its commands are also in an empty network namespace, because Python's audit events do not
show what libraries written in C try.
"""

import os
import subprocess
from pathlib import Path

import pretraining

REPOSITORY = Path(pretraining.__file__).parents[1]
# Python's audit events show each use of a socket, also by libraries; AF_UNIX (1) is for processes of one machine.
CLOSED = """
import os, sys

def refuse(event, arguments):
    tried = event in ("socket.getaddrinfo", "socket.gethostbyname", "urllib.Request", "http.client.connect")
    if event in ("socket.connect", "socket.bind", "socket.sendto"):
        tried = int(arguments[0].family) != 1
    if event == "socket.bind" and arguments[1] == ("::1", 0):  # urllib3, which pydicom loads, asks if there is IPv6
        raise OSError("no IPv6 in this test")
    if tried:
        with open(os.environ["ATTEMPTS"], "a") as file:
            print(event, arguments[1:], file=file)
        raise OSError("no network in this test")

sys.addaudithook(refuse)
"""


def closed_environment(folder: Path) -> dict[str, str]:
    """Variables with which a command and all its processes have no network.

    Args:
        folder: empty; its file ``attempts`` will say what was tried.
    """
    site = folder / "site"
    site.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(CLOSED)
    path = os.pathsep.join([str(site), str(REPOSITORY)])
    return {"PYTHONPATH": path, "ATTEMPTS": str(folder / "attempts")}


def attempts(folder: Path) -> str:
    """What tried to use the network, a line each."""
    file = folder / "attempts"
    return file.read_text() if file.exists() else ""


def alone() -> list[str]:
    """What begins a command in an empty network namespace; nothing where that is not allowed."""
    words = ["unshare", "-n"]
    try:
        return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []
