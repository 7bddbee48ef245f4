"""Run directories: their files and what a run ran on."""
