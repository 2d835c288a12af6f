"""Folders of results by the model that they are of."""

from __future__ import annotations

import re


def folder_name(model: str) -> str:
    """A folder's name for a model that may be a path or an address."""
    return re.sub(r"[^\w.@#-]+", "_", model.strip("/"))
