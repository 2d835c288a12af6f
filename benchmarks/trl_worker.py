"""The peer of ``trl_peers.py``: TRL's own trainer, a round at a time. Runs in TRL's environment, without our library's
training code; the worlds and their verifiers are ours, so that both sides act in the same.

    python trl_worker.py FOLDER          FOLDER/job.json says what; started by trl_peers.py

It reads ``go`` from its standard input for every round and answers with a line of JSON; the trainer stands still in a
callback in between, so that ours can have the machine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from openhorizon.agent.render import read_action
from openhorizon.agent.trajectory import read_tasks
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Call, Task

# The student's template with tool calls in messages, which TRL asks for: it renders what our renderer writes.
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{%- for call in message.tool_calls or [] -%}"
    '{{ \'<tool_call>{"name": "\' + call.function.name + \'", "arguments": \' }}'
    "{{ call.function.arguments | tojson }}{{ '}</tool_call>' }}"
    "{%- endfor -%}"
    "{{ '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)
RESPONSE = {  # how a turn is read, in the form of transformers' parser; trl.chat_template_utils.qwen3_template, ours
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|end\|>\s*", "content": "text"},
    },
}


class Rounds(TrainerCallback):
    """Lets ``steps`` optimizer steps run whenever it is told to, and reports them."""

    def __init__(self, answers: Any, steps: int) -> None:
        self.answers, self.steps, self.tokens = answers, steps, 0
        self.trainer: Any = None
        self.episodes: Episodes | None = None

    def _wait(self, control: Any) -> None:
        if sys.stdin.readline().strip() != "go":
            control.should_training_stop = True
        self.began, self.began_cpu = time.perf_counter(), time.process_time()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.say({"versions": {module.__name__: module.__version__ for module in (torch, transformers, trl)}})
        self._wait(control)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.episodes:
            self.episodes.open.clear()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.steps:
            return
        took = {"s": time.perf_counter() - self.began, "cpu_s": time.process_time() - self.began_cpu}
        counted = self.trainer._metrics["train"]
        means = {name: sum(values) / len(values) for name, values in counted.items() if values}
        tokens = int(counted["num_tokens"][-1]) - self.tokens
        self.tokens += tokens
        self.say(took | {"tokens": tokens, "metrics": means})
        self._wait(control)

    def say(self, what: Mapping[str, Any]) -> None:
        print(json.dumps(what), file=self.answers, flush=True)


class Episodes:
    """The worlds of the episodes under way. DistillationTrainer takes plain functions as tools, which are not told who
    calls: the episode is found in the frame of its tool loop."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = {task.prompt: task for task in tasks}
        self.open: dict[int, Any] = {}

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        loop = sys._getframe(2).f_locals
        index = loop["idx_with_tool"]
        if index not in self.open:
            task = self.tasks[loop["prompts"][index][1]["content"]]
            self.open[index] = DOMAINS[task.world].start(task)
        return str(self.open[index].call(Call(name, arguments)).text)


def search_tools(episodes: Episodes) -> list[Any]:
    def search(query: str) -> str:
        """Find up to 3 pages by words of their titles and facts.

        Args:
            query: words
        """
        return episodes.call("search", {"query": query})

    def read_page(title: str) -> str:
        """Read a page by its title.

        Args:
            title: the page's
        """
        return episodes.call("read_page", {"title": title})

    return [search, read_page]


class SearchWorld:
    """One episode of ``search`` as GRPOTrainer's ``environment_factory`` wants it."""

    tasks: list[Task]

    def reset(self, **row: Any) -> None:
        self._task = self.tasks[row["task"]]
        self._world = DOMAINS[self._task.world].start(self._task)

    def search(self, query: str) -> str:
        """Find up to 3 pages by words of their titles and facts.

        Args:
            query: words
        """
        return str(self._world.call(Call("search", {"query": query})).text)

    def read_page(self, title: str) -> str:
        """Read a page by its title.

        Args:
            title: the page's
        """
        return str(self._world.call(Call("read_page", {"title": title})).text)


def verdicts(tasks: list[Task], process_weight: float, tokenizer: Any) -> Any:
    """The reward of ``train/teachers/phases.py``: outcome plus a share of the verifier's score. The last turn is read
    from its ids, since TRL's text of them has lost the marks around a thought; one that a budget ended is no answer."""

    def last_turn(ids: list[int]) -> Any:
        if ids[-1] != tokenizer.eos_token_id:
            return None
        text: str = tokenizer.decode(ids[:-1], skip_special_tokens=False)
        return read_action(text.rpartition("<|assistant|>")[2])

    def reward(completion_ids: Any, task: list[int], environments: Any = None, **_: Any) -> list[float]:
        found = []
        for i, (ids, number) in enumerate(zip(completion_ids, task, strict=True)):
            one = tasks[number]
            domain = DOMAINS[one.world]
            world = environments[i]._world if environments else domain.start(one)
            said = last_turn(ids)
            verdict = domain.verify(one, world, said if isinstance(said, Answer) else None)
            found.append(float(verdict.passed) + process_weight * verdict.score)
        return found

    return reward


def made(job: Mapping[str, Any], folder: Path, callback: Rounds) -> Any:
    """The trainer that the job asks for."""
    common: dict[str, Any] = {
        "output_dir": str(folder / "out"), "per_device_train_batch_size": job["rows"],
        "gradient_accumulation_steps": job["accumulation"], "learning_rate": job["lr"],
        "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 1.0, "adam_beta2": 0.95,
        "max_steps": 100_000, "logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "seed": 0,
    }  # fmt: skip
    model: Any = AutoModelForCausalLM.from_pretrained(folder / job["student"], dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / job["student"], padding_side="left")
    if job["case"] == "sft":
        data = Dataset.from_json(str(folder / "samples.jsonl"))
        settings: Any = trl.SFTConfig(**common, packing=True, max_length=job["max_length"], router_aux_loss_coef=0.0)
        return trl.SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer, callbacks=[callback])
    generation = {
        "max_completion_length": job["completion"], "temperature": 1.0,
        "generation_kwargs": {"suppress_tokens": job["never"], "max_new_tokens": job["turn"]},
    }  # fmt: skip
    if job["calls"]:
        tokenizer.chat_template, tokenizer.response_template = TEMPLATE, RESPONSE
        generation["max_tool_calling_iterations"] = job["calls"]
    tasks = read_tasks(folder / "tasks.parquet") if job["tasks"] else []
    rows = [{"prompt": prompt, "task": i} for i, prompt in enumerate(job["prompts"])]
    kept = {"train_dataset": Dataset.from_list(rows), "processing_class": tokenizer, "callbacks": [callback]}
    if job["case"] == "distill":
        teacher: Any = AutoModelForCausalLM.from_pretrained(folder / "teacher", dtype=torch.float32)
        if job["calls"]:
            callback.episodes = Episodes(tasks)
            kept["tools"] = search_tools(callback.episodes)
        settings = trl.DistillationConfig(**common, **generation, beta=1.0)
        return trl.DistillationTrainer(model, teacher, settings, **kept)
    if job["calls"]:
        SearchWorld.tasks = tasks
        kept["environment_factory"] = SearchWorld
    settings = trl.GRPOConfig(
        **common, **generation, num_generations=job["group"], beta=job["kl"], epsilon=job["clip_low"],
        epsilon_high=job["clip_high"],
    )  # fmt: skip
    return trl.GRPOTrainer(model, verdicts(tasks, job["process_weight"], tokenizer), settings, **kept)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the trainer prints is no answer
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text())
    torch.set_num_threads(job["threads"])
    disable_progress_bars()
    callback = Rounds(answers, job["steps"])
    callback.trainer = made(job, folder, callback)
    callback.trainer.train()


if __name__ == "__main__":
    main()
