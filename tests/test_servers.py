"""`openhorizon up` on a real PostgreSQL: both servers keep what they are told there, and end with the command."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from openhorizon import cli, process, servers

PASSWORD = "not-to-be-seen"
ROOT = Path(__file__).parents[1]
USE = """
import sys
from mlflow.tracking import MlflowClient
from prefect import flow

@flow(name="kept")
def kept():
    return 1

kept()
client = MlflowClient(sys.argv[1])
client.create_run(client.create_experiment("kept"))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((servers.HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of a PostgreSQL that this test has started; root may not run one, so it is user postgres' then."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(shutil.which("initdb") or "none").parent]
    if not (found[-1] / "initdb").is_file():
        if "OPENHORIZON_CI" in os.environ:
            pytest.fail("no PostgreSQL: scripts/debian-packages installs it")
        pytest.skip("no PostgreSQL (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="postgres"))  # pytest's own are closed to other users
    as_user: dict[str, Any] = {}
    if os.getuid() == 0:
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        as_user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    secret = folder / "secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    made = [found[-1] / "initdb", "-D", folder / "data", "-U", "team", f"--pwfile={secret}", "--auth=scram-sha-256"]
    subprocess.run([str(it) for it in made], check=True, cwd=folder, stdout=subprocess.DEVNULL, **as_user)
    port = free_port()
    run = [
        found[-1] / "postgres",
        "-D",
        folder / "data",
        "-p",
        port,
        "-h",
        servers.HOST,
        "-k",
        folder,
        "-c",
        "fsync=off",
    ]
    child = subprocess.Popen(
        [str(it) for it in run], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user
    )
    deadline = time.monotonic() + 60
    while not (folder / f".s.PGSQL.{port}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    yield f"postgresql://team:{PASSWORD}@{servers.HOST}:{port}"
    child.send_signal(signal.SIGQUIT)  # at once
    child.wait(20)
    shutil.rmtree(folder)


def rows(postgres: str, database: str, query: str) -> list[Any]:
    import asyncpg

    async def ask() -> list[Any]:
        connection = await asyncpg.connect(f"{postgres}/{database}")
        try:
            return [row[0] for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(ask())


@pytest.mark.slow
def test_both_servers_keep_what_they_are_told_in_postgresql(postgres: str, tmp_path: Path) -> None:
    ports = free_port(), free_port()
    command = ["-m", "openhorizon", "up", "--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1])]
    home = {"PREFECT_HOME": str(tmp_path / "prefect"), servers.POSTGRES_VARIABLE: postgres}
    main = subprocess.Popen(
        [sys.executable, *command], cwd=tmp_path, env=process.child_environment(**home), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert main.stdout
        said = [main.stdout.readline() for _ in range(3)]
        assert said[2].startswith("export PREFECT_API_URL="), (said, main.communicate(timeout=30))
        family = psutil.Process(main.pid).children(recursive=True)
        assert PASSWORD not in "".join(said) + str([it.cmdline() for it in family])
        use = {"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_API_URL": f"http://{servers.HOST}:{ports[0]}/api"}
        mlflow = f"http://{servers.HOST}:{ports[1]}"
        subprocess.run(
            [sys.executable, "-c", USE, mlflow], env=process.child_environment(**use), check=True, timeout=200
        )
        assert rows(postgres, servers.PREFECT, "SELECT name FROM flow") == ["kept"]
        assert "kept" in rows(postgres, servers.MLFLOW, "SELECT name FROM experiments")
        assert len(rows(postgres, servers.MLFLOW, "SELECT run_uuid FROM runs")) == 1
    finally:
        main.terminate()
        out, err = main.communicate(timeout=60)
    assert main.returncode == 128 + signal.SIGTERM, (out, err)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


def test_a_postgresql_that_is_not_there_is_told_without_its_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "exit_on_terminate", lambda: None)
    ports = ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]
    gone = free_port()
    monkeypatch.setenv(servers.POSTGRES_VARIABLE, f"postgresql://team:{PASSWORD}@{servers.HOST}:{gone}")
    assert cli.main(["up", *ports]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert f"{servers.POSTGRES_VARIABLE}: {servers.HOST}:{gone}" in said and PASSWORD not in said
    monkeypatch.setenv(servers.POSTGRES_VARIABLE, "mysql://somewhere")
    assert cli.main(["up", *ports]) == cli.USER_ERROR
    assert "expected postgresql://" in capsys.readouterr().err
