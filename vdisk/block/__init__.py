"""The block device: what every format gives, and every service takes."""
