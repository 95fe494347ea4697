"""Loaders of public data, each checking that it is what was published."""
