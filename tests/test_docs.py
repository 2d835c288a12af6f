"""No command of the docs is wrong: each is run, here or by a test of its own, or read by the program that it starts."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from documented import ELSEWHERE, READ, ROOT, RUN, bare, commands, known

from openhorizon import cli
from openhorizon.cli.parser import parse

FOUND = commands()
FILLED = {"N": "1", "T": "1", "SCHEDULE_ID": "4d65b0f2-1a52-4915-9acc-24e44aff1549"}


def words(command: str) -> list[str]:
    """A command's words: what is optional in them, too, and what stands for a number or an id filled in."""
    plain = bare(command).replace("[", "").replace("]", "").replace("…", "")
    return [FILLED.get(word, word) for word in shlex.split(plain)]


def of(*starts: str) -> list[str]:
    return [command for command in FOUND if bare(command).startswith(starts)]


def test_every_command_is_run_or_read() -> None:
    unknown = {command: page for command, page in FOUND.items() if not known(command)}
    assert not unknown, "neither run nor listed in tests/documented.py"
    assert len(FOUND) > 80
    for command in RUN:
        assert command in FOUND, f"{command}: in no page any more"
    for start in (*ELSEWHERE, *READ):
        assert of(start), f"{start}: in no page any more"
    assert all((ROOT / "tests" / f"{name}.py").is_file() for name in ELSEWHERE.values())


def test_a_new_command_would_be_seen() -> None:
    assert not known("openhorizon dance")
    assert not known("python -m flows.study")


@pytest.mark.parametrize("command", RUN)
def test_it_runs(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("profiles", "docs/results"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(words(command)[1:]) == 0


@pytest.mark.parametrize("command", of("openhorizon ", "python -m openhorizon "))
def test_the_command_line_takes_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = re.sub(r"^(python -m )?openhorizon ", "", " ".join(words(command))).split()
    if len(arguments) == 1 or arguments[:2] == ["stage", "NAME"]:  # named in the text, with nothing that it takes
        arguments = [arguments[0], "--help"]
    code: object = 0
    try:
        parse(arguments)
    except SystemExit as error:
        code = error.code
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", of("make "))
def test_make_has_it(command: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    done = subprocess.run(
        ["make", "--dry-run", *words(command)[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", of("dvc ", ".venv/bin/dvc "))
def test_dvc_takes_it(command: str) -> None:
    from dvc.cli import parse_args

    assert parse_args(words(command)[1:]).func


@pytest.mark.parametrize("command", of("prefect "))
def test_prefect_takes_it(command: str) -> None:
    from prefect.cli._app import _app

    arguments = [word for word in words(command)[1:] if word != "--no-prompt"]  # which is read before the others
    assert callable(_app.parse_args(arguments, exit_on_error=False, print_error=False)[0])


@pytest.mark.parametrize("command", of("python ", "scripts/", ".venv/bin/python"))
def test_what_it_starts_is_there(command: str) -> None:
    started = [word for word in words(command) if re.match(r"(scripts|benchmarks|tests)/", word)]
    modules = re.findall(r"-m (flows[.\w]*)", command)
    assert started or modules or "-m openhorizon" in command
    for path in [*started, *(f"{module.replace('.', '/')}.py" for module in modules)]:
        assert (ROOT / path).is_file(), path
