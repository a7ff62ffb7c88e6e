"""OPERA: policies that answer a degraded photograph with a whole plan (arXiv 2605.22104)."""
