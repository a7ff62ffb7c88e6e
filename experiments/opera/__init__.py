"""OPERA (arXiv 2605.22104): planning as one answer, and tools that learn together."""
