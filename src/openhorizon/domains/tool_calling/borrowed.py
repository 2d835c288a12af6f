"""Files and modules of an installed benchmark package, without importing the package.

A benchmark's own simulators and checkers decide what its tasks mean, so they are run and not rewritten. But importing
such a package brings in evaluation frameworks that nothing here needs. ``Library`` loads single modules of it by path,
under names of its own; what they import from outside is answered by ``stand_ins`` where one is named, by another module
of the library where it is the package's, and by Python otherwise.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PREFIX = "openhorizon_borrowed."


def package_folder(package: str, install: str) -> Path:
    """Where an installed package lies.

    Raises:
        ValueError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {package!r} is not installed; run: pip install --no-deps {install}")
    return Path(next(iter(spec.submodule_search_locations)))


class Library:
    """Modules of one package, loaded when first asked for."""

    def __init__(self, package: str, folder: Path, stand_ins: Mapping[str, Mapping[str, Any]]) -> None:
        self.package, self.folder = package, folder
        self.stand_ins = {name: SimpleNamespace(**members) for name, members in stand_ins.items()}
        self.loaded: dict[str, ModuleType] = {}

    def module(self, name: str) -> ModuleType:
        """The module ``name`` (in full) of the package.

        Raises:
            ValueError: there is no such file in the installed version.
        """
        if name in self.loaded:
            return self.loaded[name]
        path = self.folder.joinpath(*name.split(".")[1:]).with_suffix(".py")
        spec = importlib.util.spec_from_file_location(PREFIX + name, path)
        if not path.is_file() or spec is None or spec.loader is None:
            raise ValueError(f"package {self.package!r} has no module {name}: another version of it is needed")
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": self._import}
        self.loaded[name] = sys.modules[PREFIX + name] = module  # pydantic looks a class's module up there
        spec.loader.exec_module(module)
        return module

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if name in self.stand_ins:
            return self.stand_ins[name]
        if fromlist and name.partition(".")[0] == self.package:
            return self.module(name)
        return builtins.__import__(name, globals, locals, fromlist, level)
