"""Images of strangers: what they name stays shut, and what they say is held against the file."""
