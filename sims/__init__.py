"""Offline simulation, replay and off-policy evaluation: the proof before the traffic."""
