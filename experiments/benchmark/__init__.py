"""Policies side by side on test sets (``ir-env bench``), and a page to look at what came out (``ir-env report``)."""
