"""What an image is and holds, as plain data: info, map, compare."""
