"""``openhorizon serve``: a real server of a tiny checkpoint, and what our own client makes of it."""

from __future__ import annotations

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from conftest import BUDGET, MACHINE, CountDomain
from settings import laptop_text
from test_baselines import taught
from test_training import tasks
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.chat_parsing import parse_response

from openhorizon import serve
from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.domains.base import Call
from openhorizon.model.load import Checkpoint, save_checkpoint
from openhorizon.model.smollm2 import CHAT_TEMPLATE as SMOLLM2_TEMPLATE
from openhorizon.players import open_player

STARTS_S = 120.0


@pytest.fixture(scope="module")
def folder(fresh: Callable[[int], Checkpoint], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that solves tasks of one step."""
    made, at = taught(fresh), tmp_path_factory.mktemp("model") / "counter"
    at.mkdir()
    save_checkpoint(made.model, made.tokenizer, at)
    return at


def served(folder: Path, root: Path, *options: str) -> Iterator[str]:
    """The address of a server that ends with the block, by its process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (root / "params.yaml").write_text(laptop_text(), encoding="utf-8")
    asked = [sys.executable, "-m", "openhorizon", "serve", str(folder), "--port", str(port), *options]
    with (root / "log").open("w") as log:
        environment = os.environ | {"MACHINE": "cpu", "OMP_NUM_THREADS": "1"}
        server = subprocess.Popen(asked, cwd=root, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        began = time.monotonic()
        while server.poll() is None and not answers(port):
            assert time.monotonic() - began < STARTS_S, (root / "log").read_text()
            time.sleep(0.2)
        assert server.poll() is None, (root / "log").read_text()
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(20) is not None


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server of this module runs, with what it says in ``log``."""
    return tmp_path_factory.mktemp("parsed")


@pytest.fixture(scope="module")
def parsed(folder: Path, root: Path) -> Iterator[str]:
    yield from served(folder, root)


def post(url: str, **body: Any) -> Any:
    data = json.dumps({"model": "counter", "max_tokens": 24, "temperature": 0.0, **body}).encode()
    with urlopen(Request(f"{url}/chat/completions", data, {"Content-Type": "application/json"}), timeout=60) as reply:
        text = reply.read().decode()
    return text if body.get("stream") else json.loads(text)["choices"][0]


def prompt(task: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": CountDomain.system}, {"role": "user", "content": task.prompt}]


def play(player: Any, temperature: float = 0.0) -> list[Trajectory]:
    wanted = tasks(6)
    found: list[Trajectory] = player.rollout({"count": CountDomain()}, wanted, range(6), {"count": BUDGET}, temperature)
    return found


def test_an_openai_client_gets_calls_and_gives_them_back(parsed: str) -> None:
    task = tasks(1)[0]
    tools = [tool.schema() for tool in CountDomain.tools]
    said = post(parsed, messages=prompt(task), tools=tools)
    assert said["finish_reason"] == "tool_calls"
    (call,) = said["message"]["tool_calls"]
    begin = int(task.prompt.split()[-1])
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("step", {"from": begin})
    observed = {"role": "tool", "tool_call_id": call["id"], "content": f"now {begin + 1} done"}
    last = post(parsed, messages=[*prompt(task), {**said["message"], "role": "assistant"}, observed], tools=tools)
    assert last["message"]["content"] == f"Answer: {begin + 1}"


def test_tools_that_a_template_leaves_out_are_said_and_calls_are_calls_all_the_same(parsed: str, root: Path) -> None:
    assert f"note: {serve.NO_TOOLS}" in (root / "log").read_text()
    task, tools = tasks(1)[0], [tool.schema() for tool in CountDomain.tools]
    with_tools, without = (
        post(parsed, messages=prompt(task), **given)["message"] for given in ({"tools": tools}, {"tools": None})
    )
    (call,), (same,) = with_tools["tool_calls"], without["tool_calls"]
    assert call["function"] == same["function"]


def test_a_template_that_shows_tools_needs_no_word(tokenizer: PreTrainedTokenizerFast) -> None:
    assert not serve.shows_tools(tokenizer)
    told = copy.deepcopy(tokenizer)
    told.chat_template = SMOLLM2_TEMPLATE
    assert serve.shows_tools(told)


def test_it_streams(parsed: str) -> None:
    text = post(parsed, messages=prompt(tasks(1)[0]), stream=True)
    chunks = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    (call,) = [delta["tool_calls"][0]["function"] for delta in deltas if delta.get("tool_calls")]
    assert call["name"] == "step" and json.loads(call["arguments"])["from"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_served_model_plays_as_it_plays_here(folder: Path, parsed: str) -> None:
    """Greedy, the same texts."""
    here = play(open_player(str(folder), MACHINE))
    assert sum(it.status is Status.SOLVED for it in here) >= 5
    same_play(play(open_player(f"{parsed}#counter", MACHINE)), here)


def same_play(there: list[Trajectory], here: list[Trajectory]) -> None:
    assert [[turn.text for turn in it.turns] for it in there] == [[turn.text for turn in it.turns] for it in here]
    assert [it.status for it in there] == [it.status for it in here]
    assert [it.written for it in there] == [it.written for it in here]
    assert {it.policy for it in there} == {"counter"}


@pytest.mark.long
def test_text_as_the_model_wrote_it(folder: Path, tmp_path: Path) -> None:
    for url in served(folder, tmp_path, "--raw"):
        said = post(url, messages=prompt(tasks(1)[0]))["message"]
        assert said["content"].startswith("<tool_call>{") and not said.get("tool_calls")
        same_play(play(open_player(f"{url}#counter", MACHINE)), play(open_player(str(folder), MACHINE)))


def test_what_is_asked_for_is_sampled(parsed: str) -> None:
    """Without sampling in the served settings, servers decode greedily whatever the temperature."""
    task = tasks(1)[0]
    said = [json.dumps(post(parsed, messages=prompt(task), temperature=5.0, seed=i % 4)["message"]) for i in range(5)]
    contents = [json.loads(text)["content"] for text in said]
    assert len(set(contents)) > 1 and contents[0] == contents[4], "a seed each"
    assert not any("<|user|>" in text or "<|pad|>" in text for text in contents)


def test_a_wrong_model_is_named(parsed: str) -> None:
    another = Endpoint(parsed, "another", retries=0)
    (found,) = another.rollout({"count": CountDomain()}, tasks(1), [0], {"count": BUDGET}, 0.0)
    assert found.status is Status.TRUNCATED and "pinned to 'counter'" in found.verdict.reason
    with pytest.raises(ValueError, match=r"model another: .*pinned to 'counter'"):
        another.rollout({"count": CountDomain()}, tasks(20), range(20), {"count": BUDGET}, 0.0)


def test_the_served_folder_has_the_weights_by_link(folder: Path, tmp_path: Path) -> None:
    at = serve.prepare(str(folder), False, tmp_path)
    assert at == tmp_path / "counter"
    assert (at / "model.safetensors").resolve() == (folder / "model.safetensors").resolve()
    settings = json.loads((at / "generation_config.json").read_text())
    assert settings["do_sample"] is True and settings["top_k"] == 0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    never = set(settings["suppress_tokens"])
    assert tokenizer.eos_token_id not in never and tokenizer.pad_token_id in never
    assert serve.prepare(str(folder), False, tmp_path) == at, "made anew"


def template_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    found = serve.response_template(tokenizer)
    assert found is not None
    return found


@pytest.mark.parametrize("form", ["ours", "smollm2"])
def test_turns_are_taken_apart(tokenizer: PreTrainedTokenizerFast, form: str) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    if form == "smollm2":
        tokenizer.chat_template = SMOLLM2_TEMPLATE
    template, prefix = template_of(tokenizer), serve._opens(tokenizer)

    def read(text: str) -> dict[str, Any]:
        found: dict[str, Any] = parse_response(text + tokenizer.eos_token, template, prefix=prefix)
        return found

    call = Call("step", {"from": 3, "why": 'say "}"'}, "because")
    said = read(write_action(call))
    assert said["reasoning_content"] == "because" and "content" not in said
    assert said["tool_calls"][0]["function"] == {"name": "step", "arguments": {"from": 3, "why": 'say "}"'}}
    assert read("Answer: 4") == {"role": "assistant", "content": "Answer: 4"}
    spaced = '<tool_call>\n{"name":"step",\n"arguments":{}}\n</tool_call>'
    assert read(spaced)["tool_calls"][0]["function"] == {"name": "step", "arguments": {}}
    broken = read('<tool_call>{"name": "step", "arguments": {"from": }}</tool_call>')
    assert broken["tool_calls"][0]["function"] == {"name": "step", "arguments": '{"from": }'}, "for the client to judge"
    nameless = '<tool_call>{"arguments": {}}</tool_call>'
    assert read(nameless)["content"] == nameless
    raw = parse_response(f" {write_action(call)} {tokenizer.eos_token}", serve.untouched(tokenizer), prefix=prefix)
    assert raw == {"content": f" {write_action(call)} "}


def test_a_template_without_calls_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    silent = copy.deepcopy(tokenizer)
    silent.chat_template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|end|>' }}{% endfor %}"
    with pytest.raises(ValueError, match=r"leaves calls out.*--raw"):
        serve.response_template(silent)
    silent.chat_template = "{{ raise_exception('no') }}"
    with pytest.raises(ValueError, match="renders no calls"):
        serve.response_template(silent)
    silent.chat_template = (
        "{% for m in messages %}{{ m['role'] }}{% for c in m['tool_calls'] or [] %}<call>{{ c | tojson }}{% endfor %}"
        "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    assert serve.response_template(silent) is None, "another form: the server may know it"


def test_our_template_reads_calls_as_text_or_parts_alike(tokenizer: PreTrainedTokenizerFast) -> None:
    call = Call("step", {"from": 3, "name": 'Ünal "x"'})
    asked = [{"role": "user", "content": "go"}]
    texts = []
    for arguments in (dict(call.arguments), json.dumps(dict(call.arguments), ensure_ascii=False)):
        part = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
        said = {"role": "assistant", "content": None, "tool_calls": [part]}
        texts.append(tokenizer.apply_chat_template([*asked, said], tokenize=False))
    plain = {"role": "assistant", "content": write_action(call)}
    assert texts == [tokenizer.apply_chat_template([*asked, plain], tokenize=False)] * 2


@pytest.mark.parametrize(
    ("engine", "raw", "holds"),
    [
        ("vllm", False, "vllm.entrypoints.openai.api_server --model m --served-model-name m"),
        ("vllm", False, "--enable-auto-tool-choice --tool-call-parser hermes"),
        ("sglang", False, "sglang.launch_server --model-path m --served-model-name m"),
        ("transformers", True, "transformers.cli.transformers serve m --device cpu --host 127.0.0.1 --port 8"),
    ],
)
def test_commands_of_the_servers(engine: Any, raw: bool, holds: str) -> None:
    assert holds in " ".join(serve.command(engine, "m", "cpu", "127.0.0.1", 8, raw))
    assert "parser" not in " ".join(serve.command(engine, "m", "cpu", "127.0.0.1", 8, True))


def test_an_engine_elsewhere_is_told_how(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = serve.instructions(str(folder), MACHINE, "127.0.0.1", 8, "vllm", False)
    assert said.startswith("cd .openhorizon/serve && python -m vllm.entrypoints.openai.api_server --model counter ")
    assert (tmp_path / ".openhorizon" / "serve" / "counter" / "config.json").is_file()


def test_names_that_no_server_misreads() -> None:
    assert serve.served_name("teacher@search") == "teacher-search"
    assert serve.served_name("/models/My Model@v1/") == "My-Model-v1"


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="vllm is not installed"):
        serve.choose("vllm")
