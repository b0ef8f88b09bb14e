"""Captures: migrations that were written down, one file for each connection."""
