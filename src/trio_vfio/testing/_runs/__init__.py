"""Whole migrations in virtual time: what happens in one, and what never may."""
