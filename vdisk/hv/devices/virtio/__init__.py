"""Virtio 1.x devices over PCI: the split ring, the transport, and the block, console and entropy devices."""
