"""Preference pairs: reading them, the sources of the paper's sets, rewrites."""
