"""Restoration for other programs: as a service with a page, and as tools of an assistant."""
