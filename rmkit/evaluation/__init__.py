"""Scoring sets of preference pairs; metrics, suites, token rewards and generation."""
