"""`python -m vdisk`."""

from vdisk.cli import main

main()
