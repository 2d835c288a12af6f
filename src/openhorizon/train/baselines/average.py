"""One model with the mean of all teachers' weights (Wortsman et al. 2022, "Model soups", arXiv 2203.05482).

It takes no compute; more would not help it.
"""

from __future__ import annotations

from openhorizon.train.baselines.given import Given, Made
from openhorizon.train.merging import check_shapes, mean_weights


def run(given: Given) -> Made:
    """Raises ``ValueError`` where the teachers are not of one shape, or of another than the SFT model."""
    models = {name: teacher.model for name, teacher in given.teachers().items()}
    check_shapes({"sft": given.start.model, **models})
    given.start.model.load_state_dict(mean_weights(models))
    return given.start, {}
