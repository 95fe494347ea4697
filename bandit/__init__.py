"""Contextual Thompson sampling: values in, values out; no network, no database, no clock."""

PROJECT = "banditctl"
"""Tells this package from PyCQA's linter, which owns the same import name."""
