"""An S3 server on loopback (moto, in a process of its own), and DVC's remote on it."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from openhorizon import process

MISSING = [name for name in ("dvc_s3", "moto") if importlib.util.find_spec(name) is None]
s3 = pytest.mark.skipif(
    bool(MISSING) and "OPENHORIZON_CI" not in os.environ,
    reason="dvc-s3 or moto is not installed: scripts/install-extra s3",
)
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address; it has a bucket ``store``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("w") as file:
        command = [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | KEYS)
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{address}/store", method="PUT"), timeout=10).close()
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
    yield address
    server.terminate()
    server.wait(30)


def dvc(root: Path, *arguments: str) -> str:
    """What ``dvc ARGUMENTS`` prints in ``root``."""
    command = [sys.executable, "-m", "openhorizon.process", *arguments]
    environment = process.child_environment(**KEYS)
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def use(root: Path, address: str, prefix: str) -> None:
    """Make the bucket's ``prefix`` the default remote of ``root``, in the configuration that git ignores."""
    dvc(root, "remote", "add", "--force", "--local", "--default", "store", f"s3://store/{prefix}")
    dvc(root, "remote", "modify", "--local", "store", "endpointurl", address)
