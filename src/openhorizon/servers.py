"""Prefect's and MLflow's servers by one command: on files of this checkout, or on a PostgreSQL that one variable names.

They listen on loopback, and end with the command that started them. Each has a database of its own, since both keep
their schema's version in a table of the same name.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from openhorizon import process
from openhorizon.tracking import DATABASE

POSTGRES_VARIABLE = "OPENHORIZON_POSTGRES"  # postgresql://USER:PASSWORD@HOST:PORT
HOST = "127.0.0.1"
PREFECT, MLFLOW = "openhorizon_prefect", "openhorizon_mlflow"  # databases
START_S, LOOK_S, END_S = 180.0, 0.5, 15.0


@dataclass(frozen=True)
class Server:
    """One server: its command, where it answers once it is there, and what only it may know."""

    name: str
    command: tuple[str, ...]
    url: str
    health: str
    environment: Mapping[str, str]


def servers(root: Path, prefect_port: int, mlflow_port: int, postgres: str | None) -> tuple[Server, Server]:
    """Both. A password goes by the environment, never by the command line."""
    prefect, mlflow = f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}"
    store = f"sqlite:///{root / DATABASE}"
    database = {"PREFECT_API_URL": f"{prefect}/api"}
    if postgres:
        store = _database(postgres, MLFLOW, "postgresql+psycopg2")
        database["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = _database(postgres, PREFECT, "postgresql+asyncpg")
    return (
        Server(
            "Prefect",
            ("prefect", "server", "start", "--host", HOST, "--port", str(prefect_port)),
            prefect,
            "/api/health",
            database,
        ),
        Server(
            "MLflow",
            ("mlflow", "server", "--host", HOST, "--port", str(mlflow_port), "--workers", "1"),
            mlflow,
            "/health",
            {"MLFLOW_BACKEND_STORE_URI": store},
        ),
    )


def up(root: Path, prefect_port: int, mlflow_port: int, say: Callable[[str], None]) -> int:
    """Start both, say where they are, and wait until one ends or this process is ended.

    Raises:
        ValueError: no PostgreSQL where the variable says, or a server that does not come up.
    """
    postgres = os.environ.get(POSTGRES_VARIABLE)
    if postgres:
        asyncio.run(make_databases(postgres))
    found = servers(root, prefect_port, mlflow_port, postgres)
    running: list[subprocess.Popen[bytes]] = []
    try:
        for server in found:
            environment = process.child_environment(**server.environment)
            environment.pop(POSTGRES_VARIABLE, None)
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", *server.command],
                    cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )
            )  # fmt: skip
        process.guard_children()
        for server, child in zip(found, running, strict=True):
            _wait_for(server, child)
            say(f"{server.name}: {server.url}")
        say(f"export PREFECT_API_URL={found[0].url}/api MLFLOW_TRACKING_URI={found[1].url}")
        while all(child.poll() is None for child in running):
            time.sleep(LOOK_S)
        ended = next(s.name for s, child in zip(found, running, strict=True) if child.poll() is not None)
        raise ValueError(f"up: {ended}'s server has ended")
    finally:
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(END_S)
            except subprocess.TimeoutExpired:
                child.kill()
        process.end_children()


async def make_databases(postgres: str) -> None:
    """Make both databases where they are not yet there.

    Raises:
        ValueError: nobody answers there, or it refuses; the message does not have the password.
    """
    import asyncpg

    where = urlsplit(postgres)
    try:
        connection = await asyncpg.connect(_database(postgres, "postgres", "postgresql"), timeout=20)
        try:
            for name in (PREFECT, MLFLOW):
                if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name):
                    await connection.execute(f'CREATE DATABASE "{name}"')
        finally:
            await connection.close()
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        said = " ".join(str(error).split()).replace(where.password or "\0", "…")
        raise ValueError(f"{POSTGRES_VARIABLE}: {where.hostname}:{where.port or 5432}: {said}") from error


def _database(postgres: str, name: str, scheme: str) -> str:
    where = urlsplit(postgres)
    if where.scheme not in ("postgresql", "postgres") or not where.hostname:
        raise ValueError(f"{POSTGRES_VARIABLE}: expected postgresql://USER:PASSWORD@HOST:PORT")
    return urlunsplit((scheme, where.netloc, f"/{name}", where.query, ""))


def _wait_for(server: Server, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while not _answers(server.url + server.health):
        if child.poll() is not None or time.monotonic() > deadline:
            raise ValueError(f"up: {server.name}'s server does not come up; `{' '.join(server.command)}` says why")
        time.sleep(LOOK_S)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
