"""The firmware of our own: a small ROM whose interrupt handlers trap to Python, and the tables a system reads."""
