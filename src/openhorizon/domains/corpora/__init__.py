"""What several domains read."""
