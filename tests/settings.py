"""Profile laptop as the repository has it, whatever params.yaml holds at the moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from openhorizon import profiles
from openhorizon.config import Config, build

BASE = Path(__file__).parents[1] / "profiles" / "base.yaml"
DOMAINS = ("search", "tool_calling", "instruction")


def laptop_text(domains: Sequence[str] = DOMAINS) -> str:
    """The params file with these domains."""
    text = BASE.read_text(encoding="utf-8")
    return profiles.render(profiles.fill({**yaml.safe_load(text), "domains": list(domains)}), text)


def laptop(domains: Sequence[str] = DOMAINS) -> Config:
    config: Config = build(Config, yaml.safe_load(laptop_text(domains)), BASE.name)
    return config
