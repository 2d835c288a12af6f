"""The ``openhorizon`` command."""

from openhorizon.cli.command import DEBUG_VARIABLE, USER_ERROR, main

__all__ = ["DEBUG_VARIABLE", "USER_ERROR", "main"]
