"""Task arithmetic: θ_sft + λ Σ_d (θ_d − θ_sft) (Ilharco et al. 2023, arXiv 2212.04089).

λ is the one of ``baselines.arithmetic.scales`` that does best on validation tasks over all domains; of equals, the
first. Trying them is all that it spends.
"""

from __future__ import annotations

import math

from openhorizon.model.sharding import duplicate
from openhorizon.train.baselines.given import Given, Made, success
from openhorizon.train.kept import Kept
from openhorizon.train.merging import task_arithmetic


def run(given: Given) -> Made:
    """Raises ``ValueError`` where the teachers and the SFT model are not of one shape."""
    origin = duplicate(given.start.model)
    models = {name: teacher.model for name, teacher in given.teachers().items()}
    kept = Kept(given.start.model, lambda name: success(given, given.start, name), math.inf)
    given.saved.enter(kept=kept)
    for scale in given.config.arithmetic.scales:
        name = f"scale_{scale:g}"
        if name not in kept.found:
            given.start.model.load_state_dict(task_arithmetic(origin, models, scale))
            kept.offer(name)
            given.saved.after(len(kept.found))
    kept.restore()
    found = {f"validation_{name}": solved for name, solved in kept.found.items()}
    return given.start, {**found, "kept": kept.name}
