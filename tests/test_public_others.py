"""IFBench, IFEval, HotpotQA, ScienceWorld and SciCode as benchmarks: their scorers, references and bad data."""

from __future__ import annotations

import collections
import importlib.util
import json
import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from openhorizon.agent.player import Script
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.bench.public import followed, hotpotqa, ifbench, ifeval, scicode, scienceworld
from openhorizon.bench.public.base import Benchmark, Result
from openhorizon.bench.public.files import VARIABLE, read_lines
from openhorizon.bench.public.journal import Journal
from openhorizon.bench.public.run import Sampling, reference, run
from openhorizon.bench.public.summary import Rate, counts, failures, rates
from openhorizon.domains.base import Answer, Call, Task, Verdict
from openhorizon.domains.corpora.hotpot import load_hotpot

SAMPLING = Sampling(0.0, 0)


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{missing} not installed")


def play(benchmark: Benchmark, name: str, tasks: Sequence[Task], folder: Path) -> list[Result]:
    return run(benchmark, reference(benchmark, name), tasks, SAMPLING, Journal(folder / name, {}))


def overall(benchmark: Benchmark, results: Sequence[Result]) -> dict[str, Rate]:
    return {rate.metric: rate for rate in rates(benchmark, results, 0) if rate.group == "all"}


@needs("ifbench", "emoji", "syllapy", "llama_index")
def test_ifbenchs_sample_answers_get_the_score_of_its_own_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ``generate_report`` over the same outputs; the six prompts that need a tagger are counted, not scored."""
    monkeypatch.setattr(ifbench, "has_tagger", lambda: False)
    tasks = ifbench.IFBENCH.tasks()
    results = play(ifbench.IFBENCH, "sample", tasks, tmp_path)
    said = counts(results)
    assert said["judged"] == 288 and sum(said["not_judged"].values()) == 6 and len(tasks) == 294
    library = ifbench.evaluation()
    inputs = library.read_prompt_list(str(ifbench.folder() / "data" / "IFBench_test.jsonl"))
    inputs = [item for item in inputs if ifbench.TAGGED not in item.instruction_id_list]
    random.seed(0)
    for how in ("strict", "loose"):
        test = getattr(library, f"test_instruction_following_{how}")
        theirs = library.generate_report([test(item, ifbench.answers()) for item in inputs], how)
        ours = overall(ifbench.IFBENCH, results)
        assert ours[f"prompt_{how}"].value == pytest.approx(theirs[f"{how}:prompt-level"], abs=1e-6)
        assert ours[f"instruction_{how}"].value == pytest.approx(theirs[f"{how}:instruction-level"], abs=1e-6)
    floor = overall(ifbench.IFBENCH, play(ifbench.IFBENCH, "floor", tasks[:40], tmp_path))
    assert all(rate.value == 0 for rate in floor.values())


@needs("ifbench", "emoji", "syllapy", "llama_index")
def test_judging_leaves_the_random_state_alone_and_is_the_same_every_time() -> None:
    task = ifbench.IFBENCH.tasks()[0]
    before = random.getstate()
    fresh = followed.Following("ifbench", ifbench.rows, ifbench.judge)
    first = ifbench.WORLD.judged(task, "one two three")
    assert random.getstate() == before and fresh.judged(task, "one two three") == first


def test_an_answer_is_judged_once_however_often_it_is_asked_for() -> None:
    seen = []

    def judge(row: Mapping[str, Any], text: str) -> tuple[list[bool], list[bool]]:
        seen.append(text)
        return [text == "a"], [True]

    world = followed.Following("x", lambda: {"x-1": {"prompt": "p", "instruction_id_list": ["r:s"]}}, judge)
    (task,) = world.tasks()
    for text in ("a", "b"):
        environment, answer = world.start(task), Answer(text)
        assert world.verify(task, environment, answer).passed is (text == "a")
        played = Trajectory(task, (), text, Status.SOLVED, Verdict(True, 1.0, ""), "expert", 0)
        assert world.measure(played)["prompt_strict"].value == (text == "a")
    assert seen == ["a", "b"]


@needs("ifbench")
def test_an_answer_that_was_cut_off_is_judged_as_far_as_it_came() -> None:
    task = ifbench.IFBENCH.tasks()[0]
    turns = (Turn("prompt", task.prompt), Turn("assistant", "<think>hm</think>So far, so"))
    made = Trajectory(task, turns, None, Status.TRUNCATED, Verdict(False, 0.0, ""), "x", 0)
    assert followed.final_text(made) == "So far, so"


PROMPTS = [
    {"key": 1, "prompt": "A lake. No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "Name a river twice, without commas.",
        "instruction_id_list": ["keywords:frequency", "punctuation:no_comma"],
        "kwargs": [{"keyword": "river", "frequency": 2, "relation": "at least"}, {}],
    },
    {
        "key": 3,
        "prompt": "Three sentences at least.",
        "instruction_id_list": ["length_constraints:number_sentences"],
        "kwargs": [{"num_sentences": 3, "relation": "at least"}],
    },
]


@needs("if_verifiable", "llama_index")
def test_ifeval_from_a_users_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=r"ifeval/input_data.jsonl: not there; IFEval's prompts are in no package"):
        ifeval.IFEVAL.tasks()
    (tmp_path / "ifeval").mkdir()
    (tmp_path / "ifeval" / "input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    answers = {
        "ifeval-1": "A quiet lake",
        "ifeval-2": "Here, the river:\nthe river and the river",  # with a comma in its first line: followed loosely
        "ifeval-3": "One. Two. Three.",
    }
    script = Script("x", lambda task: (Answer(answers[task.id]),))
    results = run(ifeval.IFEVAL, script, ifeval.IFEVAL.tasks(), SAMPLING, Journal(tmp_path / "j", {}))
    found = overall(ifeval.IFEVAL, results)
    assert found["prompt_strict"].value == pytest.approx(2 / 3, abs=1e-6) and found["prompt_loose"].value == 1
    assert found["instruction_strict"].value == 0.75 and found["instruction_loose"].value == 1
    assert ifeval.IFEVAL.version.startswith("input_data.jsonl, sha256 ")
    floor = overall(ifeval.IFEVAL, play(ifeval.IFEVAL, "floor", ifeval.IFEVAL.tasks(), tmp_path))
    assert floor["prompt_loose"].value == 0


@needs("if_verifiable", "llama_index")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{no json", "line 2: not JSON"),
        ("[1]", "line 2: a list, expected an object"),
        ('{"key": 4, "prompt": 5, "instruction_id_list": [], "kwargs": []}', "line 2: prompt is 5, expected str"),
        (json.dumps(PROMPTS[0] | {"kwargs": []}), "record 2, key 1: not as many kwargs"),
        (json.dumps(PROMPTS[0] | {"instruction_id_list": ["no:such"]}), "record 2, key 1: no rule 'no:such'"),
    ],
)
def test_a_file_of_another_format_is_refused_with_the_line(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    (tmp_path / "ifeval").mkdir()
    (tmp_path / "ifeval" / "input_data.jsonl").write_text(f"{json.dumps(PROMPTS[1])}\n{line}\n")
    with pytest.raises(ValueError, match=said):
        ifeval.IFEVAL.tasks()


def test_a_file_without_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"x.jsonl: no line of data"):
        read_lines(tmp_path / "x.jsonl", {})


@needs("long_context_eval")
def test_hotpotqas_references(tmp_path: Path) -> None:
    """Published answers after both pages: 100. "no" to everything: the share of questions that are answered so."""
    tasks = hotpotqa.HOTPOTQA.tasks()
    held = [q for q in load_hotpot().questions.values() if q.split == "heldout"]
    assert len(tasks) == len(held) == 1912
    some = tasks[::8]
    gold = play(hotpotqa.HOTPOTQA, "gold", some, tmp_path)
    assert {name: rate.value for name, rate in overall(hotpotqa.HOTPOTQA, gold).items()} == {
        "exact_match": 1.0,
        "f1": 1.0,
        "page_recall": 1.0,
    }
    floor = overall(hotpotqa.HOTPOTQA, play(hotpotqa.HOTPOTQA, "floor", tasks, tmp_path))
    share = sum(q.answer.strip().lower().rstrip(".") == "no" for q in held) / len(held)
    assert floor["exact_match"].value == pytest.approx(share, abs=1e-6) and floor["page_recall"].value == 0
    trained = {page for q in load_hotpot().questions.values() if q.split == "train" for page in q.pages}
    assert not trained & {page for task in tasks for page in task.evidence}


def words_f1(given: str, published: str) -> float:
    """Slow and by hand, over words that are compared one by one."""
    left = published.split()
    shared = 0
    for word in given.split():
        if word in left:
            left.remove(word)
            shared += 1
    if not shared:
        return 0.0
    precision, recall = shared / len(given.split()), shared / len(published.split())
    return 2 * precision * recall / (precision + recall)


def test_hotpotqas_f1_is_what_a_slow_count_gives() -> None:
    rng = random.Random(0)
    for _ in range(300):
        a, b = (" ".join(rng.choices(["red", "blue", "green", "sea"], k=rng.randint(1, 5))) for _ in range(2))
        assert hotpotqa.f1(a, b) == pytest.approx(words_f1(a, b))
    assert hotpotqa.f1("The  Red, sea!", "a red sea") == 1
    assert hotpotqa.f1("yes it is", "yes") == 0 == hotpotqa.f1("no", "no way") and hotpotqa.f1("No.", "no") == 1
    assert hotpotqa.read_answer("I think so.\nAnswer: a ship\nand more") == "a ship"


@needs("long_context_eval")
def test_page_recall_counts_pages_that_were_read(tmp_path: Path) -> None:
    task = hotpotqa.HOTPOTQA.tasks()[0]
    script = Script("half", lambda task: (Call("read_page", {"title": task.evidence[0]}), Answer(task.reference)))
    (result,) = run(hotpotqa.HOTPOTQA, script, [task], SAMPLING, Journal(tmp_path / "j", {}))
    assert result.success and result.metrics["page_recall"].value == 0.5


JAVA = pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("scienceworld") is None, reason="no Java or ScienceWorld"
)


@JAVA
def test_scienceworlds_references_on_a_few_test_variations(tmp_path: Path) -> None:
    tasks = scienceworld.SCIENCEWORLD.tasks()
    assert len(tasks.keys) > 1500 and len({kind for kind, _ in tasks.keys[:30]}) == 30  # type: ignore[attr-defined]
    some = [tasks[i] for i in range(30) if tasks.keys[i][0] == "find-plant"]  # type: ignore[attr-defined]
    gold = play(scienceworld.SCIENCEWORLD, "gold", some, tmp_path)
    assert failures(scienceworld.SCIENCEWORLD, gold) == [] and all(result.tool_calls > 1 for result in gold)
    floor = play(scienceworld.SCIENCEWORLD, "floor", some, tmp_path)
    assert all(result.metrics["score"].value == 0 for result in floor)


@pytest.mark.long
@JAVA
def test_scienceworlds_gold_paths_reach_100_on_60_test_variations(tmp_path: Path) -> None:
    some = scienceworld.SCIENCEWORLD.tasks()[:60]
    gold = play(scienceworld.SCIENCEWORLD, "gold", some, tmp_path)
    assert failures(scienceworld.SCIENCEWORLD, gold) == []
    assert collections.Counter(result.group for result in gold).most_common()[-1][1] == 2


SCICODE = needs("scicode")


@SCICODE
def test_scicodes_own_code_passes_and_other_code_does_not(tmp_path: Path) -> None:
    """On its shortest problem; a step that ends the process early proves nothing."""
    (task,) = (task for task in scicode.SCICODE.tasks() if task.id == "scicode-3")
    (gold,) = play(scicode.SCICODE, "gold", [task], tmp_path)
    assert gold.success and gold.metrics["step"] == (1.0, 1)
    code = scicode.problems()["3"]["sub_steps"][0]["ground_truth_code"]
    name = code.split("def ")[1].split("(")[0]
    for wrong, said in (
        (f"def {name}(*given, **named):\n    return 0", "test 1 of"),
        ("import os\nos._exit(0)", "no output"),
        ("print('all tests passed')", "NameError"),
        ("this is no code", "SyntaxError"),
    ):
        script = Script("wrong", lambda task, wrong=wrong: (Call("submit_step", {"code": wrong}), Answer("done")))
        (result,) = run(scicode.SCICODE, script, [task], SAMPLING, Journal(tmp_path / said, {}))
        assert not result.success and said in result.reason, result.reason
    fenced = Script("fenced", lambda task: (Call("submit_step", {"code": f"```python\n{code}\n```"}), Answer("done")))
    (result,) = run(scicode.SCICODE, fenced, [task], SAMPLING, Journal(tmp_path / "fenced", {}))
    assert result.success


@SCICODE
def test_code_under_test_cannot_read_the_authors_code() -> None:
    spy = "import scicode, os\nfor p in scicode.__path__:\n    print(sorted(os.listdir(p)))\nraise SystemExit('seen')"
    found = scicode.tried("3", 0, (spy,))
    assert found.reason
    for place in ("/site/scicode/data/problems_dev.jsonl", "/work/scicode/data/problems_dev.jsonl"):
        assert "FileNotFoundError" in scicode.tried("3", 0, (f"open({place!r})",)).reason


@SCICODE
def test_every_test_of_scicode_says_what_it_expects() -> None:
    """The value that each compares is found; three shapes by hand."""
    for problem in scicode.problems().values():
        for step in problem["sub_steps"]:
            for test in step["test_cases"]:
                recorded = scicode.recording(test)
                assert ("target =" in recorded) == ("target" in test)
                assert "target" not in recorded.replace("target =", "")
    assert scicode.recording("assert np.allclose(f(1), target)") == "target = f(1)"
    assert scicode.recording("assert (a < b) == target") == "target = a < b"
    assert scicode.recording("assert c(f(1)[0], target[0]) and c(g(2), target[1])") == "target = (f(1)[0], g(2))"
    with pytest.raises(ValueError, match="in an unknown way"):
        scicode.recording("assert target > 3")


@pytest.mark.long
@SCICODE
def test_scicodes_own_code_passes_all_15_problems(tmp_path: Path) -> None:
    gold = play(scicode.SCICODE, "gold", scicode.SCICODE.tasks(), tmp_path)
    assert failures(scicode.SCICODE, gold) == [] and sum(result.tool_calls for result in gold) == 50
