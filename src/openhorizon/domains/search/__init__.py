"""Long-horizon search: one module a world."""
