"""Bytes in files: positional reads and writes, holes, copies inside the kernel, memory."""
