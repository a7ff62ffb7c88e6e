"""Measurements: each script prints the figures that README and CHANGELOG state."""
