"""`python -m vdisk.cli`."""

from vdisk.cli import main

main()
