"""Shows a disk to other programs."""
