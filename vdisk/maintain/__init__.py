"""Changing images in place: commit, rebase, resize, snapshots."""
