#!/usr/bin/env bash
# Installs, with apt, the programs that vdisk is checked against: qemu-img, libyal's readers, 7z, nbdkit, firmware.
#
#   scripts/setup-peers.sh               install what is missing (as root, or through sudo, which may ask for a password)
#   scripts/setup-peers.sh --if-allowed  the same, but never ask: where it may not, say what stays untested and succeed
#   scripts/setup-peers.sh --list        print the packages, one a line
#
# vdisk itself needs none of these.
set -euo pipefail

# What each is for, so that one who reads this on another system knows what to look for there.
packages=(
    qemu-utils        # qemu-img, qemu-io, qemu-nbd: the first reader and writer of every format
    qemu-system-x86   # the QEMU engine of "vdisk boot", and the lab
    libqcow-utils     # qcowmount, qcowinfo: a second reader of qcow2
    libvmdk-utils     # vmdkmount, vmdkinfo: a second reader of VMDK
    libvhdi-utils     # vhdimount, vhdiinfo: a second reader of VHD and VHDX
    7zip              # a third reader: qcow2, VMDK, VDI, VHD, VHDX
    fuse3             # fusermount, for libyal's mounts by an ordinary user
    nbdkit            # an NBD server to compare with
    libnbd-bin        # nbdinfo, nbdcopy, nbdsh: NBD clients
    seabios           # a firmware to check our own against
    ovmf              # a firmware for UEFI, for the QEMU engine
    grub-rescue-pc    # an ISO whose GRUB menu the hypervisor must reach
    memtest86+        # a long-running guest
    ipxe              # a boot sector with a network loader
    syslinux          # a boot loader
    syslinux-common   # its first sector; and memdisk, which boots a disk held in memory
    mtools            # what syslinux installs itself with
    acpica-tools      # iasl, which reads the firmware's ACPI tables
    debootstrap       # the Debian disk
    e2fsprogs         # mkfs.ext4 -d, e2fsck
    xfsprogs          # mkfs.xfs -p
    ntfs-3g           # mkntfs, and a driver to fill it
    lvm2              # pvcreate, lvcreate: a guest on a logical volume
    fdisk             # sfdisk
    chromium          # a browser that reports are looked at in
)

mode="${1:-install}"
if [ "$mode" = --list ]; then
    printf '%s\n' "${packages[@]}"
    exit 0
fi

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    echo "peers: this is not a Debian or Ubuntu machine; install these by hand, or what they are called here:"
    echo "peers:   ${packages[*]}"
    # Asked for by name, this is a failure; as a part of "make test" the tests that need them skip and say so.
    [ "$mode" = --if-allowed ] && exit 0 || exit 1
fi

missing=()
for package in "${packages[@]}"; do
    status="$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)"
    [ "$status" = "install ok installed" ] || missing+=("$package")
done
if [ "${#missing[@]}" = 0 ]; then
    echo "peers: all ${#packages[@]} packages are installed"
    exit 0
fi

if [ "$(id -u)" = 0 ]; then
    as_root=()
elif [ "$mode" = --if-allowed ] && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
elif [ "$mode" != --if-allowed ] && command -v sudo >/dev/null; then
    as_root=(sudo)
elif [ "$mode" = --if-allowed ]; then
    echo "peers: not root, so not installing ${missing[*]}; tests that need them skip (\"make peers\" installs them)"
    exit 0
else
    echo "peers: run this as root, or install by hand: ${missing[*]}" >&2
    exit 1
fi

echo "peers: installing ${missing[*]}"
"${as_root[@]}" apt-get update -q
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
