"""params.yaml → ``Config``: an unknown or missing key, or a value of a wrong type, is told with its path."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from openhorizon.config.blocks import PARAMS_FILE, Config
from openhorizon.config.checks import check


def load(path: Path = PARAMS_FILE) -> Config:
    """Read and check a params file.

    Raises:
        ValueError: not YAML, an unknown or missing key, or a value of a wrong type; the message has the key's path.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run from the project's root, or `openhorizon profile laptop`")
    raw = read_yaml(path)
    config: Config = build(Config, raw, path.name)
    check(config, path.name)
    return config


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        ValueError: it is none; the message begins with the path.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error


def build(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a block of keys, got {value!r}")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(hints))}")
        for key in hints:
            if key not in value:
                raise ValueError(f"{where}: missing key {key!r}")
        return kind(  # type: ignore[operator]
            **{
                key: build(hint, value[key], f"{where}:{key}" if ":" not in where else f"{where}.{key}")
                for key, hint in hints.items()
            }
        )
    if origin is dict:
        if not isinstance(value, dict) or not value:
            raise ValueError(f"{where}: expected a block of names, got {value!r}")
        return {key: build(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where}: expected a list, got {value!r}")
        return tuple(build(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin is types.UnionType:
        return None if value is None and type(None) in arguments else build(arguments[0], value, where)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # nor is nan
            raise ValueError(f"{where}: {str(value)[:20]} is no finite number")
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r} ({type(value).__name__})")
    return value
