"""Measurements: ``make bench``. Ratios from one run; absolute times depend on the machine."""
