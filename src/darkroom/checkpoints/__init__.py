"""Checkpoints: which files, reading, writing."""
