"""Scoring sets of preference pairs, and what is computed from their rewards."""
