"""What a profile will take, before it is run."""
