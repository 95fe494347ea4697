"""Rollouts: policies on simulated customers."""
