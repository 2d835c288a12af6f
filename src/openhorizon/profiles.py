"""Profiles: ``profiles/base.yaml`` and what one profile changes, or several that are joined by ``+`` (``laptop+best``),
merged into ``params.yaml``."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from openhorizon import config
from openhorizon.artifacts import write_text

FOLDER = Path("profiles")
_BASE = "base"
_BY_DOMAIN = ("generate", "budget", "teach")  # blocks with a block for each domain, over their `default`


def known(root: Path) -> list[str]:
    """The profiles of a project."""
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml") if path.stem != _BASE)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top: blocks merge key by key, everything else (lists too) is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def fill(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with a block for every domain in use where they have ``default``: what params.yaml says in full. A
    domain's tasks come from its first world, which goes by the domain's name, unless its block names ``worlds``."""
    filled = dict(values)
    for block in _BY_DOMAIN:
        own = dict(values.get(block, {}))
        default = own.pop("default", {})
        worlds = {name: {"worlds": [name]} if block == "generate" else {} for name in values["domains"]}
        filled[block] = {name: merge(merge(worlds[name], default), own.get(name, {})) for name in values["domains"]}
    return filled


def write(name: str, root: Path) -> bool:
    """Merge profile ``name`` into ``params.yaml``; False where it was so already.

    Raises:
        ValueError: no such profile, or the result is no valid configuration; params.yaml is then left as it was.
    """
    text = compose(name, root, [])
    target = root / config.PARAMS_FILE
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return False
    write_text(target, text)
    return True


def unedited(root: Path) -> bool:
    """Whether ``params.yaml`` is what ``write`` makes of the profile that it names."""
    file = root / config.PARAMS_FILE
    try:
        return file.read_text(encoding="utf-8") == compose(config.load(file).profile, root, [])
    except (OSError, ValueError):
        return False


def settings(name: str, root: Path, changes: Sequence[Mapping[str, Any]] = ()) -> config.Config:
    """What profile ``name`` would be with ``changes``, without writing it. Raises as ``compose``."""
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / config.PARAMS_FILE.name
        trial.write_text(compose(name, root, changes), encoding="utf-8")
        return config.load(trial)


def compose(name: str, root: Path, changes: Sequence[Mapping[str, Any]]) -> str:
    """The params file of profile ``name`` with further ``changes`` on top, in their order; checked.

    Raises:
        ValueError: no such profile, or the result is no valid configuration.
    """
    parts = name.split("+")
    for part in parts:
        if part not in known(root):
            of_which = f"profile {name!r}: {part!r} is" if len(parts) > 1 else f"profile {name!r}:"
            raise ValueError(f"{of_which} unknown; known are {', '.join(known(root))}")
    base_text = (root / FOLDER / f"{_BASE}.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(base_text)
    for change in [*(_read(root / FOLDER / f"{part}.yaml") for part in parts), *changes]:
        values = merge(values, change)
    files = " + ".join(str(FOLDER / f"{part}.yaml") for part in (_BASE, *parts))
    where = f"{files}{' + more changes' if changes else ''}"
    _check_shape(values, where)
    text = render(fill(merge(values, {"profile": name})), base_text)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / config.PARAMS_FILE.name
        trial.write_text(text, encoding="utf-8")
        try:
            config.load(trial)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    return text


def _check_shape(values: Mapping[str, Any], where: str) -> None:
    """What ``fill`` takes for granted. Raises ``ValueError``."""
    domains = values.get("domains")
    if not isinstance(domains, list) or not all(isinstance(name, str) for name in domains):
        raise ValueError(f"{where}: domains: expected a list of names, got {domains!r:.60}")
    blocks = [(block, values.get(block, {})) for block in _BY_DOMAIN]
    blocks += [(f"{name}.{key}", it) for name, own in blocks if isinstance(own, Mapping) for key, it in own.items()]
    for name, own in blocks:
        if not isinstance(own, Mapping):
            raise ValueError(f"{where}: {name}: expected a block of keys, got {own!r:.60}")


def render(values: Mapping[str, Any], base_text: str) -> str:
    """YAML of ``values``, each block behind the comment that ``base_text`` has on it."""
    comments = dict(re.findall(r"^(\w+):[^#\n]*#\s*(.+)$", base_text, flags=re.MULTILINE))
    files = " and ".join(f"profiles/{part}.yaml" for part in str(values["profile"]).split("+"))
    lines = [
        f"# Every number of the recipe, as profile `{values['profile']}`: profiles/base.yaml and what {files} changes.",
        "# Written by `openhorizon profile NAME`; edits here hold until the next such call. Sections are the paper's.",
    ]
    for key, value in values.items():
        lines.append("")
        if key in comments:
            lines.append(f"# {comments[key]}")
        flow = None if isinstance(value, Mapping | list) else False  # None: innermost collections in one line
        block = yaml.dump({key: value}, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=110)
        lines.append(block.rstrip())
    return "\n".join(lines) + "\n"


class _Dumper(yaml.SafeDumper):
    """Writes blocks that base.yaml shares by an anchor out in full: each domain has numbers of its own."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _read(path: Path) -> dict[str, Any]:
    values = config.read_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a block of keys, got {values!r}")
    return values


def digest(value: Any) -> str:
    """A short hash of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
