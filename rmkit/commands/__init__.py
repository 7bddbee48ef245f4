"""The commands of `rmkit`, one per file. Slow imports happen when a command runs."""
