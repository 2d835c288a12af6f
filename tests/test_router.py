"""Who teaches whom: routes by name, their scores against unpacked logits, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import MACHINE
from test_training import FOUR, as_domain, demonstrations

from openhorizon.model.load import Checkpoint, Teacher
from openhorizon.model.sampler import LocalPolicy
from openhorizon.train.router import ROUTINGS, Router


@pytest.mark.parametrize("routing", list(ROUTINGS))
def test_scores_are_those_of_the_routed_distribution(tiny: Callable[..., Checkpoint], routing: str) -> None:
    student = tiny(seed=0)
    own = {name: tiny(seed=1 + n) for n, name in enumerate("abc")}
    samples = [as_domain(s, "abc"[i % 3]) for i, s in enumerate(demonstrations(student, 6))]
    never = LocalPolicy(student, 8).never
    router = Router(student, [Teacher(name, teacher) for name, teacher in own.items()], list("abc"), routing, 7)
    before = {name: copy.deepcopy(teacher.model.state_dict()) for name, teacher in own.items()}
    if routing == "merged":
        soup = copy.deepcopy(student.model)
        weights = [dict(teacher.model.named_parameters()) for teacher in own.values()]
        for name, parameter in soup.named_parameters():
            parameter.data = torch.stack([w[name].data for w in weights]).mean(0)
    homes = set()
    for sample, scores in zip(samples, router.score(samples, FOUR, never, MACHINE), strict=True):
        trained = torch.tensor(sample.loss_mask[1:])

        def distribution(model: Any, sample: Any = sample, trained: Any = trained) -> torch.Tensor:
            with torch.no_grad():
                return torch.softmax(model(input_ids=torch.tensor([sample.ids])).logits[0, :-1][trained], 1)

        domain = sample.task.domain
        teacher = next((name for name, t in own.items() if t.hash == scores.teacher), "")
        expected = {
            "hard": lambda d=domain: distribution(own[d].model),
            "mixture": lambda: torch.stack([distribution(t.model) for t in own.values()]).mean(0),
            "shuffled": lambda t=teacher: distribution(own[t].model),
            "merged": lambda: distribution(soup),
        }[routing]().log()
        top = expected.masked_fill(never, -torch.inf).topk(4, dim=1)
        assert torch.allclose(scores.logprobs_NK, top.values, atol=1e-3)
        ids = torch.tensor(sample.ids)[1:][trained]
        assert torch.allclose(scores.written_logprobs_N, expected.gather(1, ids[:, None])[:, 0], atol=1e-3)
        assert routing != "shuffled" or teacher != domain
        homes.add((domain, teacher))
    assert routing != "shuffled" or len({teacher for _, teacher in homes}) == 3
    for name, teacher in own.items():
        assert all(torch.equal(before[name][key], value) for key, value in teacher.model.state_dict().items())


def test_a_shuffle_depends_on_its_seed_alone(tiny: Callable[..., Checkpoint]) -> None:
    student = tiny(seed=9)
    teachers = [Teacher(name, replace(tiny(seed=1), hash=name)) for name in "abcdef"]

    def routes(order: list[Teacher], seed: int) -> dict[str, str]:
        return {d: t[0].hash for d, t in Router(student, order, list("abcdef"), "shuffled", seed).routes.items()}

    assert routes(teachers, 1) == routes(teachers[::-1], 1)
    assert len({tuple(sorted(routes(teachers, seed).items())) for seed in range(8)}) > 4


def test_what_cannot_teach_is_refused_by_name(tiny: Callable[..., Checkpoint]) -> None:
    student, teacher = tiny(seed=0), tiny(seed=1)
    with pytest.raises(ValueError, match="'b' has no teacher; there are a"):
        Router(student, [Teacher("a", teacher)], ["a", "b"], "hard", 0)

    class Longer:
        def get_vocab(self) -> dict[str, int]:
            return {**student.tokenizer.get_vocab(), "extra": 9999}

    foreign: Any = Longer()
    with pytest.raises(ValueError, match=r"'a' has another vocabulary .* 1 entries differ"):
        Router(student, [Teacher("a", replace(teacher, tokenizer=foreign))], ["a"], "hard", 0)
    wide = copy.deepcopy(teacher)
    wide.model.config.vocab_size = 384
    with pytest.raises(ValueError, match="384 logits, the student 320"):
        Router(student, [Teacher("a", wide)], ["a"], "hard", 0)
    with pytest.raises(ValueError, match="'a' is the student"):
        Router(student, [Teacher("a", replace(student, hash="other"))], ["a"], "hard", 0)
    with pytest.raises(ValueError, match="shuffled needs two"):
        Router(student, [Teacher("a", teacher)], ["a"], "shuffled", 0)
    other = Teacher("b", tiny("qwen3_moe", seed=2))
    with pytest.raises(ValueError, match="one shape; that of 'b'"):
        Router(student, [Teacher("a", teacher), other], ["a", "b"], "merged", 0)
