"""Recipes that ship: see `rnope compare --help` for their names."""
