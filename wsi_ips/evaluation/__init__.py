"""Evaluation: numbers in, numbers out; no files."""
