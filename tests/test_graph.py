"""dvc.yaml against the code: order, params, and that every file that decides a result is listed."""

from __future__ import annotations

import ast
import importlib.machinery
import re
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from settings import BASE, laptop, laptop_text

from flows.reproduce import recipe
from openhorizon import config, pipeline
from openhorizon.bench.public import BENCHMARKS
from openhorizon.config import STAGES, Config
from openhorizon.train.baselines import BASELINES

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "openhorizon"
EVERY_DOMAIN = yaml.safe_load(BASE.read_text())["domains"]
GRAPH = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# What decides no result: where, how fast, how it is said and recorded. config only reads what `params` lists.
NEUTRAL = {"__init__", "artifacts", "config", "lineage", "tracking", "progress", "pipeline", "process", "unfinished"}


@pytest.fixture(scope="module")
def settings() -> Config:
    return laptop(EVERY_DOMAIN)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Graph:
    return graph_of(tmp_path_factory.mktemp("graph"))


def graph_of(folder: Path, **run: Sequence[str]) -> pipeline.Graph:
    """The graph of profile laptop, whatever params.yaml holds at the moment, where these ``run`` of the blocks."""
    params = yaml.safe_load(laptop_text(EVERY_DOMAIN))
    for block, names in run.items():
        params[block]["run"] = list(names)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    config.load(folder / "params.yaml")
    return pipeline.graph(folder)


def body(name: str) -> dict[str, Any]:
    stage: dict[str, Any] = GRAPH[name]
    return stage.get("do", stage)


def word(name: str) -> str:
    """The stage module of a stage in dvc.yaml: what its command runs."""
    return re.search(r"openhorizon stage (\w+)", body(name)["cmd"]).group(1)  # type: ignore[union-attr]


def ordered(
    domains: Sequence[str], baselines: Sequence[str] = (), benchmarks: Sequence[str] = ()
) -> dict[str, list[str]]:
    """What the flow's recipe asks for: a stage → the stages it waits for. Futures are their names here."""
    asked: dict[str, list[str]] = {}

    def submit(stage: str, after: Sequence[str]) -> str:
        assert set(after) <= set(asked), f"{stage} waits for what is not yet there"
        asked[stage] = list(after)
        return stage

    recipe(cast(Any, submit), domains, baselines, benchmarks)
    return asked


def before(stage: str, asked: dict[str, list[str]]) -> set[str]:
    return set(asked[stage]).union(*(before(below, asked) for below in asked[stage]))


def test_the_flow_runs_exactly_the_stages_of_the_graph(settings: Config, graph: pipeline.Graph) -> None:
    assert set(ordered(settings.domains)) == set(graph)


def test_the_flow_starts_a_stage_after_all_it_reads(settings: Config, graph: pipeline.Graph) -> None:
    asked = ordered(settings.domains)
    for stage, reads in graph.items():
        assert reads <= before(stage, asked), f"{stage} may start before {reads - before(stage, asked)}"


def test_baselines_are_in_the_graph_where_they_are_to_be_run(settings: Config, tmp_path: Path) -> None:
    """None by default: neither DVC nor the flow knows of a stage that would make the recipe slower."""
    assert settings.baselines.run == ()
    graph = graph_of(tmp_path, baselines=list(BASELINES))
    asked = ordered(settings.domains, list(BASELINES))
    assert set(asked) == set(graph) and {f"baseline@{name}" for name in BASELINES} <= set(graph)
    for stage, reads in graph.items():
        assert reads <= before(stage, asked), f"{stage} may start before {reads - before(stage, asked)}"
    made = waves(settings.domains, list(BASELINES))
    assert set.union(*made) == set(graph) and sum(map(len, made)) == len(graph)
    for name in BASELINES:
        below = {f"baseline@{name}", f"evaluate-baseline@{name}", "report"}
        assert pipeline.affected(graph, [f"baseline@{name}"]) == below
        assert "evaluate@student" not in before(f"baseline@{name}", asked)


def test_benchmarks_are_in_the_graph_where_they_are_to_be_run(settings: Config, tmp_path: Path) -> None:
    """None by default; each once the student is there, and the report after all of them. One whose user is a model has
    no stage, which would have none."""
    of_stages = [name for name, benchmark in BENCHMARKS.items() if benchmark.with_user is None]
    assert settings.benchmarks.run == ()
    graph, asked = graph_of(tmp_path, benchmarks=of_stages), ordered(settings.domains, (), of_stages)
    assert set(asked) == set(graph) and {f"benchmark@{name}" for name in of_stages} <= set(graph)
    for stage, reads in graph.items():
        assert reads <= before(stage, asked), f"{stage} may start before {reads - before(stage, asked)}"
    made = waves(settings.domains, (), of_stages)
    assert set.union(*made) == set(graph) and sum(map(len, made)) == len(graph)
    assert pipeline.affected(graph, ["benchmark@bfcl"]) == {"benchmark@bfcl", "report"}


def test_independent_stages_do_not_wait_for_each_other(settings: Config) -> None:
    asked = ordered(settings.domains)
    first, second, *_ = settings.domains
    assert f"teach@{second}" not in before(f"teach@{first}", asked)
    assert "sft" not in before("evaluate@base", asked)
    assert "distill" not in before("evaluate@sft", asked)


def test_one_domains_teacher_concerns_only_what_follows_from_it(settings: Config, graph: pipeline.Graph) -> None:
    domain = settings.domains[0]
    concerned = {f"teach@{domain}", f"evaluate-teacher@{domain}", "distill", "evaluate@student", "report"}
    assert pipeline.affected(graph, [f"teach@{domain}"]) == concerned


def test_every_word_has_its_module_and_its_stage() -> None:
    assert {word(name) for name in GRAPH} == set(STAGES)
    for name in STAGES:
        assert (SOURCE / "stages" / f"{name}.py").is_file()


@pytest.mark.parametrize("name", GRAPH)
def test_params_exist_and_none_says_where_or_how_fast(name: str, settings: Config) -> None:
    values = yaml.safe_load(laptop_text(EVERY_DOMAIN))
    for param in body(name)["params"]:
        found = values
        for key in param.replace("${item}", settings.domains[0]).split("."):
            assert key in found, f"{name}: the params have no {param}"
            found = found[key]
        assert not param.startswith("machines")
        assert param != "profile" or name == "report"


@pytest.mark.parametrize("name", GRAPH)
def test_a_command_names_neither_machine_nor_launcher(name: str) -> None:
    assert re.fullmatch(r"exec python -m openhorizon stage \w+( --target [\w@${}]+)?", body(name)["cmd"])


@pytest.mark.parametrize("name", GRAPH)
def test_every_block_that_a_stage_reads_is_a_param(name: str) -> None:
    read = set(re.findall(r"\bconfig\.(\w+)", (SOURCE / "stages" / f"{word(name)}.py").read_text()))
    listed = {param.split(".")[0] for param in body(name)["params"]}
    per_domain = {"domains"} if "foreach" in GRAPH[name] and GRAPH[name]["foreach"] == "${domains}" else set()
    assert read - {"machine", "machines", "Config"} <= listed | per_domain


@pytest.mark.parametrize("name", GRAPH)
def test_every_module_that_decides_a_result_is_listed(name: str, settings: Config) -> None:
    domain = settings.domains[0]
    listed = [dep.replace("${item}", domain) for dep in body(name)["deps"] if dep.startswith("src/")]
    for dep in listed:
        assert (ROOT / dep).exists(), f"{name}: {dep} does not exist"
    for module in sorted(reached(SOURCE / "stages" / f"{word(name)}.py")):
        place = module.relative_to(ROOT)
        assert any(place.is_relative_to(dep) for dep in listed), f"{name}: its code uses {place}"


def reached(path: Path) -> set[Path]:
    """The files of openhorizon that a module imports, and theirs; not past the registry of domains, as a stage of one
    domain lists that domain's file alone."""
    found: set[Path] = set()
    waiting = [path]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        waiting += [below for below in _imported(file) if _counts(below)]
    return found


def _counts(file: Path) -> bool:
    place = file.relative_to(SOURCE)
    return place.with_suffix("").parts[0] not in NEUTRAL and place.as_posix() != "domains/__init__.py"


def _imported(file: Path) -> list[Path]:
    names = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("openhorizon"):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    bases = [SOURCE.parent / name.replace(".", "/") for name in names]
    places = [place for base in bases for place in (base.with_suffix(".py"), base / "__init__.py")]
    return [place for place in places if place.is_file()]


def test_packages_hold_no_code_of_their_own() -> None:
    for file in SOURCE.rglob("__init__.py"):
        if file != SOURCE / "domains" / "__init__.py":
            statements = ast.parse(file.read_text(encoding="utf-8")).body
            plain = ast.Expr | ast.Assign | ast.ImportFrom  # names handed on
            assert all(isinstance(it, plain) for it in statements), f"{file}: code that no test follows"


def waves(domains: Sequence[str], baselines: Sequence[str], benchmarks: Sequence[str] = ()) -> list[set[str]]:
    """Of scripts/stages-alone, as dvc.yaml calls the stages."""
    path = str(ROOT / "scripts" / "stages-alone")
    loader = importlib.machinery.SourceFileLoader("stages_alone", path)
    script = types.ModuleType("stages_alone")
    script.__file__ = path
    loader.exec_module(script)
    split = re.compile(r"evaluate@(\w+)@")
    named = [["@".join(filter(None, stage)) for stage in wave] for wave in script.waves(domains, baselines, benchmarks)]
    return [{split.sub(r"evaluate-\1@", name) for name in wave} for wave in named]


def test_the_recipe_without_a_flow_is_the_same_recipe(settings: Config, graph: pipeline.Graph) -> None:
    seen: set[str] = set()
    for names in waves(settings.domains, ()):
        for name in names:
            assert graph[name] <= seen, f"{name} runs before what it reads"
        seen |= names
    assert seen == set(graph)
