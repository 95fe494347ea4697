"""Compiled loops of the simulation: arrays in, arrays out, nothing checked."""
