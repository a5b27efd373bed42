"""`python -m levitax` is the command `levitax`."""

from .cli import main


main()
