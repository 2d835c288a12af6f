"""τ²'s tasks with the scripted user: demonstrations accepted, corruptions refused, the test split left alone."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import jsonschema
import pytest

from openhorizon.agent.trajectory import read_tasks, write_tasks
from openhorizon.domains.base import Action, Answer, Call, Split, Task, replay, split_of
from openhorizon.domains.tool_calling import tau2
from openhorizon.domains.tool_calling.tau2 import Tau2Domain, Tau2Environment, entries
from openhorizon.domains.tool_calling.tau2_session import Session, read_data, service_tools

if importlib.util.find_spec("inspect_evals") is None:
    pytest.skip("inspect-evals is not installed", allow_module_level=True)
DOMAIN = Tau2Domain()
SERVICES = tau2.SERVICES


class Only(random.Random):
    """Draws one given task."""

    def __init__(self, key: str) -> None:
        super().__init__(0)
        self.key = key

    def choice(self, seq):  # type: ignore[no-untyped-def]
        return self.key if self.key in seq else self.key.split("/")[0]


def tasks(service: str, count: int, split: Split = "train") -> list[Task]:
    """Some tasks of a service, of all horizons in turn."""
    found: list[Task] = []
    for seed in range(400):
        horizon = 4 + seed % 9
        task = DOMAIN.propose(random.Random(f"{service}{seed}"), split, horizon, seed)
        if (
            task is not None
            and task.state["id"].startswith(service)
            and task.state["id"] not in [t.state["id"] for t in found]
        ):
            found.append(task)
        if len(found) == count:
            return found
    raise AssertionError(f"too few tasks of {service}")


def shown(task: Task) -> tuple[Action, ...]:
    actions = DOMAIN.demonstration(task)
    assert actions is not None
    return actions


def check(task: Task) -> None:
    environment, answer = replay(DOMAIN, task, shown(task))
    verdict = DOMAIN.verify(task, environment, answer)
    assert verdict.passed and set(verdict.rubric.values()) == {True}, (task.id, verdict)
    assert len(environment.steps) == task.horizon
    assert set(task.evidence) <= environment.consulted()


@pytest.mark.parametrize(("service", "count"), [("airline", 3), ("retail", 5), ("telecom", 40)])
def test_demonstrations_are_accepted_in_exactly_horizon_calls(service: str, count: int) -> None:
    for task in tasks(service, count):
        check(task)


@pytest.mark.long
def test_every_demonstration_is_accepted_and_corrupted_ones_refused() -> None:
    accepted = refused = 0
    for horizon, keys in sorted(tau2._by_horizon("train").items()):
        for key in keys:
            if tau2.usable(key):
                task = DOMAIN.propose(Only(key), "train", horizon, 0)
                assert task is not None
                check(task)
                accepted += 1
                refused += sum(corrupt(task))
    assert accepted > 1000 and refused > 1000


@pytest.mark.parametrize(("service", "count"), [("airline", 2), ("retail", 3), ("telecom", 30)])
def test_corrupted_demonstrations_are_refused(service: str, count: int) -> None:
    for task in tasks(service, count):
        assert all(corrupt(task)), (task.id, corrupt(task))


def corrupt(task: Task) -> list[bool]:
    """Nothing done, a wrong code, no closing, and, without telecom's detours, an action left out that changes
    something; whether each was refused."""
    actions = shown(task)
    talk = tuple(a for a in actions if isinstance(a, Answer) or (isinstance(a, Call) and a.name in ("message_user", "close_session")))  # noqa: E501  # fmt: skip
    silent = tuple(
        Call(a.name, {"message": "Hm."}) if isinstance(a, Call) and a.name == "close_session" else a for a in talk
    )
    wrong = [silent, (*actions[:-1], Answer("Answer: 00000")), ()]
    writes = [n for n, a in enumerate(actions) if isinstance(a, Call) and tau2._writes(a.name)]
    environment, _ = replay(DOMAIN, task, actions)
    writes = [n for n in writes if not environment.steps[n].observation.error]
    wrong += [actions[: writes[-1]] + actions[writes[-1] + 1 :]] if writes else []
    return [not DOMAIN.verify(task, *replay(DOMAIN, task, w)).passed for w in wrong]


def test_a_harmful_extra_action_is_refused() -> None:
    (task,) = tasks("retail", 1)
    actions = shown(task)
    environment = DOMAIN.start(task)
    environment.call(Call("list_all_product_types", {}))
    assert isinstance(environment, Tau2Environment)
    user = next(u for u in _users(environment) if u not in str(actions))
    harm = {
        "user_id": user,
        "address1": "1 Nowhere",
        "address2": "",
        "city": "Nil",
        "state": "NY",
        "country": "USA",
        "zip": "0",
    }
    verdict = DOMAIN.verify(task, *replay(DOMAIN, task, (Call("modify_user_address", harm), *actions)))
    assert [item for item, met in verdict.rubric.items() if not met] == ["database"]


def _users(environment: Tau2Environment) -> list[str]:
    tools = environment.session.objects["RetailAgentTools", "RetailTools"]
    return sorted(tools.db.users)


def test_sessions_do_not_share_a_database() -> None:
    first, second = (Session("airline", {}) for _ in range(2))
    before = second.database()
    text, refused = first.call("send_certificate", {"user_id": "anya_garcia_5901", "amount": 100})
    assert not refused, text
    assert first.database() != before == second.database() == Session("airline", {}).database()
    assert first.call("send_certificate", {"user_id": "nobody", "amount": 1}) == ("Error: User nobody not found", True)


def test_the_scripted_user_hands_over_his_notes_and_no_more() -> None:
    (task,) = tasks("retail", 1)
    environment = DOMAIN.start(task)
    said = [environment.call(Call("message_user", {"message": "Hello?"})).text for _ in range(3)]
    instructions = entries()[task.state["id"]]["user_scenario"]["instructions"]
    assert said[0] == f"Customer's note: {instructions['reason_for_call']}"
    assert instructions["known_info"].strip() in said[1] and said[2] == "The customer has nothing to add."
    assert "Closing code" in environment.call(Call("close_session", {"message": "Bye."})).text
    assert environment.call(Call("message_user", {"message": "Hello?"})).error
    assert "scripted" in (tau2.__doc__ or "") and "Not the official protocol" in (tau2.__doc__ or "")


def test_the_test_split_is_left_to_the_benchmark() -> None:
    reserved = {key for key, entry in entries().items() if entry["reserved"]}
    assert {sum(key.startswith(service) for key in reserved) for service in SERVICES} == {20, 40}
    held = set(tau2.heldout_texts())
    assert len(held) > 60
    faults = {tau2._faults(key) for key in reserved}
    for split in ("train", "heldout"):
        for keys in tau2._by_horizon(split).values():  # type: ignore[arg-type]
            for key in keys:
                assert key not in reserved and not (key.startswith("telecom") and tau2._faults(key) in faults)
                assert split_of(tau2._pair(key)) == split
                assert " ".join(tau2._notes(entries()[key])) not in held or key.startswith("telecom")


def test_tools_are_described_from_the_package() -> None:
    names = {service: {tool.name for tool in service_tools(service)} for service in SERVICES}
    assert "book_reservation" in names["airline"] and "reboot_device" in names["telecom"]
    for service in SERVICES:
        for tool in service_tools(service):
            jsonschema.Draft202012Validator.check_schema(dict(tool.parameters))
            assert tool.description and tool.parameters["additionalProperties"] is False
    (task,) = tasks("retail", 1)
    assert {tool.name for tool in DOMAIN.tools_for(task)} == names["retail"] | {"message_user", "close_session"}
    assert DOMAIN.start(task).call(Call("get_order_details", {})).text == "error: bad arguments"


def test_offers_and_refusals() -> None:
    assert DOMAIN.offers([1, 6, 64]) == (6,)
    assert DOMAIN.propose(random.Random(0), "train", 64, 0) is None
    with pytest.raises(ValueError, match="horizon 0"):
        DOMAIN.propose(random.Random(0), "train", 0, 0)
    with pytest.raises(ValueError, match="demonstrations"):
        DOMAIN.expert("", random.Random(0), 0.0)
    assert DOMAIN.demonstration(tasks("telecom", 1, "heldout")[0]) is None


def test_the_framework_is_not_imported() -> None:
    assert not {"inspect_ai", "inspect_evals"} & set(sys.modules)


def test_tasks_survive_a_file(tmp_path: Path) -> None:
    some = tasks("telecom", 5)
    write_tasks(tmp_path / "tasks.parquet", some)
    assert read_tasks(tmp_path / "tasks.parquet") == some


def test_a_malformed_or_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no db\.json"):
        read_data(tmp_path / "db.json")
    (tmp_path / "db.json").write_text("{")
    with pytest.raises(ValueError, match=r"db\.json of package 'inspect_evals' is malformed"):
        read_data(tmp_path / "db.json")
