"""A service desk of several services with databases, in natural text: ``world`` is its domain."""
