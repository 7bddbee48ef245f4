"""`python -m rmkit`."""

from rmkit.cli import main

main()
