"""OVF packages: a virtual machine's description, its disks and their digests, in a folder or in one tar file (OVA).

Read: DSP0243 (OVF) 1.x and 2.x descriptors, and those of VMware before 1.0. Written: OVF 1.0 with streamOptimized disks
and a SHA-256 manifest.
"""

from __future__ import annotations

from vdisk.ova.package import Package, is_package, open_disk

__all__ = ["Package", "is_package", "open_disk"]
