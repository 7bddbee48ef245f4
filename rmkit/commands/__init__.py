"""The commands of `rmkit`, one a file. They import what is slow to import only when they run."""
