#!/bin/sh
# Makes a disk with a bare Debian 12 on it, whose kernel's modules are there, too, and whose apt has in its
# cache what packages may ask for.
#   $1 an empty folder for the root   $2 the disk   $3 where a kernel package was unpacked
#   $4 packages that are installed, with commas   $5 packages that apt has in its cache
set -eu
root=$1 disk=$2 kernel=$3 installed=$4 cached=$5

# Where this machine has its packages from; apt expands what looks like a command.
# shellcheck disable=SC2016
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' |
  head -n 1)
debootstrap --variant=minbase --include="$installed" bookworm "$root" "$mirror"

chroot "$root" apt-get --quiet update
rm -f "$root"/var/cache/apt/archives/*.deb
# Words on purpose: package names.
# shellcheck disable=SC2086
chroot "$root" apt-get --quiet --yes --download-only install $cached

mkdir -p "$root/lib/modules"
cp -a "$kernel"/lib/modules/. "$root/lib/modules/"
for modules in "$root"/lib/modules/*; do
  chroot "$root" depmod "${modules##*/}"
done

echo hv1 >"$root/etc/hostname"
: >"$root/etc/fstab"
: >"$root/etc/resolv.conf"
: >"$root/etc/machine-id"
# Keeps its journal.
mkdir -p "$root/var/log/journal"

truncate --size 2G "$disk"
mkfs.ext4 -q -d "$root" "$disk"
