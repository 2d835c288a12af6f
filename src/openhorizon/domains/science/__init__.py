"""Scientific reasoning: one module a world."""
