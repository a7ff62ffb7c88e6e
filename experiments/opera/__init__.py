"""OPERA: what all restoration plans of four tools are worth."""
