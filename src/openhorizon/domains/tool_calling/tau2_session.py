"""τ²-bench's databases and tools (package inspect-evals, MIT), run without the framework they were written for.

The tool modules are loaded by path; ``inspect_ai`` is stood in for by the few names that they use. Their state lives in
a store that is switched before each call, so sessions must not run in several threads at once.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import inspect
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from openhorizon.domains.base import Tool
from openhorizon.domains.tool_calling.borrowed import Library, package_folder

_STATE = {"airline": ("AirlineAgentTools", "AirlineTools"), "retail": ("RetailAgentTools", "RetailTools")}


class ToolError(Exception):
    """Stands for inspect_ai's: what a tool says against a call."""


class _Store:
    """Stands for inspect_ai's store: objects by class and instance, of the session that is current."""

    def __init__(self) -> None:
        self.current: dict[tuple[str, str], Any] = {}

    def store_as(self, kind: Callable[[], Any], instance: str | None = None) -> Any:
        key = (kind.__name__, instance or "")
        if key not in self.current:
            self.current[key] = kind()
        return self.current[key]


@functools.cache
def _store() -> _Store:
    return _Store()


@functools.cache
def folder() -> Path:
    return package_folder("inspect_evals", "inspect-evals==0.26.0") / "tau2"


def read_data(path: str | Path) -> Any:
    """A data file of the package: JSON or TOML, perhaps zipped.

    Raises:
        ValueError: it is missing or malformed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"package 'inspect_evals' has no {path.name}: version 0.26.0 is needed")
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    try:
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path.name} of package 'inspect_evals' is malformed: {error}") from error


_read_once = functools.cache(read_data)


@functools.cache
def _library() -> Library:
    """The package's τ² modules. ``utils`` is stood in for, too: it would read more files and leave unzipped copies."""
    import pydantic

    class StoreModel(pydantic.BaseModel):
        """Stands for inspect_ai's: a model that may hold plain objects."""

        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    stand_ins: dict[str, dict[str, Any]] = {
        "inspect_ai.tool": {"ToolError": ToolError, "Tool": object, "tool": lambda maker: maker},
        "inspect_ai.util": {"StoreModel": StoreModel, "store_as": _store().store_as},
        "inspect_evals.tau2.utils": {
            "TAU2_DATA_DIR": folder() / "data",
            "load_file": _read_once,
            "dump_file": None,
            "get_pydantic_hash": None,
        },
    }
    return Library("inspect_evals", folder().parent, stand_ins)


@functools.cache
def _makers(service: str) -> dict[str, Callable[[], Any]]:
    """The tools of a service: name → what makes its coroutine function. Telecom has the user's device tools, too."""
    names = [f"inspect_evals.tau2.{service}.tools"]
    names += ["inspect_evals.tau2.telecom.user_tools"] if service == "telecom" else []
    found: dict[str, Callable[[], Any]] = {}
    for name in names:
        module = _library().module(name)
        lists = [value for key, value in vars(module).items() if key.startswith("all_") and isinstance(value, list)]
        if len(lists) != 1:
            raise ValueError(f"package 'inspect_evals': {name} does not list its tools; version 0.26.0 is needed")
        found |= {maker.__name__: maker for maker in lists[0]}
    return found


@functools.cache
def service_tools(service: str) -> tuple[Tool, ...]:
    """A service's tools, described by their docstrings and annotations."""
    return tuple(_tool(name, maker()) for name, maker in sorted(_makers(service).items()))


def _tool(name: str, execute: Callable[..., Any]) -> Tool:
    import pydantic

    head, _, rest = inspect.cleandoc(execute.__doc__ or name).partition("Args:")
    notes = dict(re.findall(r"^\s+(\w+)(?: \([^)]*\))?: (.+)$", rest.split("Returns:")[0], re.MULTILINE))
    fields: dict[str, Any] = {}
    for key, parameter in inspect.signature(execute, eval_str=False).parameters.items():
        default = ... if parameter.default is inspect.Parameter.empty else parameter.default
        fields[key] = (parameter.annotation, pydantic.Field(default, description=notes.get(key)))
    model = pydantic.create_model(name, __config__=pydantic.ConfigDict(extra="forbid"), **fields)
    schema: dict[str, Any] = _untitled(model.model_json_schema())
    return Tool(name, " ".join(head.split()), {"required": [], **schema})


def _untitled(value: Any) -> Any:
    """A schema without the titles that pydantic gives every field."""
    if isinstance(value, dict):
        return {k: _untitled(v) for k, v in value.items() if k != "title" or not isinstance(v, str)}
    return [_untitled(item) for item in value] if isinstance(value, list) else value


class Session:
    """The databases and tools of one session."""

    def __init__(self, service: str, entry: Mapping[str, Any]) -> None:
        self.service = service
        self.makers = _makers(service)
        self.objects: dict[tuple[str, str], Any] = {}
        if service == "telecom":
            for action in (entry["initial_state"] or {}).get("initialization_actions") or ():
                self._side(action["env_type"], action["func_name"], action["arguments"])
            self._sync()

    def call(self, name: str, arguments: Mapping[str, Any]) -> tuple[str, bool]:
        """What a tool returns, and whether it is a refusal."""
        store = _store()
        store.current, before = self.objects, store.current
        try:
            coroutine = self.makers[name]()(**arguments)
            try:
                coroutine.send(None)
            except StopIteration as done:
                result = done.value
            else:
                raise ValueError(f"tau2: tool {name} waits for something")
        except ToolError as error:
            return f"Error: {error}", True
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # as τ² does: any fault is the answer
            return f"Error: {error}", True
        finally:
            store.current = before
        if self.service == "telecom":
            self._sync()
        return result if isinstance(result, str) else json.dumps(result, default=str), False

    def _environment(self) -> Any:
        return _library().module("inspect_evals.tau2.telecom.environment").get_environment()

    def _sync(self) -> None:
        """What one side of telecom does shows on the other; done by making the package's environment anew."""
        store = _store()
        store.current, before = self.objects, store.current
        try:
            self._environment()
        finally:
            store.current = before

    def _side(self, side: str, name: str, arguments: Mapping[str, Any]) -> Any:
        store = _store()
        store.current, before = self.objects, store.current
        try:
            environment = self._environment()
            return getattr(environment.tools if side == "assistant" else environment.user_tools, name)(**arguments)
        finally:
            store.current = before

    def holds(self, assertion: Mapping[str, Any]) -> bool:
        found = self._side(assertion["env_type"], assertion["func_name"], assertion["arguments"])
        return bool(found == assertion["assert_value"])

    def database(self) -> str:
        """A digest of the service's own database (telecom: without the user's device)."""
        store = _store()
        store.current, before = self.objects, store.current
        try:
            if self.service == "telecom":
                return _digest(self._environment().tools)
            tools = self.objects.get(_STATE[self.service])
            return _digest(tools) if tools is not None else _untouched(self.service)
        finally:
            store.current = before


def _digest(tools: Any) -> str:
    text = json.dumps(tools.db.model_dump(), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _untouched(service: str) -> str:
    """Of the database that no call has opened yet."""
    kind, _ = _STATE[service]
    tools = getattr(_library().module(f"inspect_evals.tau2.{service}.{kind}"), kind)()
    tools.initialize()
    return _digest(tools)
