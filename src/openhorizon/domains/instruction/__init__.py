"""Instruction following: one module a world."""
