"""Computations that several implementations call."""
