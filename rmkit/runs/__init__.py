"""Run directories: their files, rewards and explanations, and the environment of a run."""
