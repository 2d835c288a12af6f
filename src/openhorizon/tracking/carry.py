"""One reproduction as an MLflow run, opened and closed by the flow, which carries its stages' records meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from openhorizon.config import Config
from openhorizon.progress import Progress
from openhorizon.tracking.record import PARENT_VARIABLE, RECORDS, UNTRACKED, may_run, status_of
from openhorizon.tracking.store import Store, tracked

CARRY_S = 5.0  # between two writes of the flow


@contextmanager
def reproduction(config: Config, root: Path) -> Iterator[str]:
    """The parent run of one reproduction, for ``PARENT_VARIABLE`` of its stages, whose records it carries to MLflow."""
    with Progress("reproduce", "opening the MLflow run"):
        store = tracked(lambda: Store(root))
        if store:
            tracked(store.settle)
        parent = tracked(lambda: store.start_parent(config)) if store else None
    stop = threading.Event()

    def carry_all(opened: Store, last: bool) -> bool:
        for record in sorted((root / RECORDS).glob("*.jsonl")):
            opened.carry(record, last or not may_run(record))
        return True

    def carry() -> None:
        """Where MLflow goes away, what was not carried waits in its record: for its return, or the next flow."""
        last, well = False, True
        while store and parent and not last:
            last = stop.wait(CARRY_S)
            well = tracked(partial(carry_all, store, last), say=well) is not None

    thread = threading.Thread(target=carry, name="tracking", daemon=True)
    thread.start()
    status = "FINISHED"
    try:
        yield parent or UNTRACKED
    except BaseException as error:
        status = status_of(type(error))
        raise
    finally:
        stop.set()
        thread.join()
        if store and parent:
            tracked(lambda: store.end_parent(parent, status))


def settle(root: Path) -> None:
    """Complete what earlier reproductions left of their records, if any did. To be called where no other one runs."""
    if any((root / RECORDS).glob("*")):
        with Progress("reproduce", "completing what an earlier one left in MLflow"):
            tracked(lambda: Store(root).settle())


def publish(root: Path) -> None:
    """Put the report on the run above a stage that plain ``dvc repro`` started; a flow does this at its end."""
    if not os.environ.get(PARENT_VARIABLE):
        tracked(lambda: Store(root).publish(None))
