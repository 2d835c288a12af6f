"""Tool calling: one module a world."""
