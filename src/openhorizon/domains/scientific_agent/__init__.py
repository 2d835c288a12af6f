"""Scientific agentic work: one module a world, and what they share."""
