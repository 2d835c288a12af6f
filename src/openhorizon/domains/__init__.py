"""The registry of domains: the one place that knows them all."""

from openhorizon.domains.base import Domain

DOMAINS: dict[str, Domain] = {}
