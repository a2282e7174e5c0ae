"""Boots any BlockDevice on /dev/kvm; knows no image format."""
