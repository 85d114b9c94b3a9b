# shellcheck shell=sh
# Makes a root that is this machine's own files, read-only, below a layer in memory: its programs, its
# packages, none of what they keep, and none of its services.
#   $1 the folder that gets `root`
set -eu
mount -t tmpfs -o mode=0755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
cd "$1/root"
# What the machine's administrator enabled is not enabled here.
rm -rf etc/systemd/system etc/rc?.d var/lib/systemd/deb-systemd-helper-enabled usr/sbin/policy-rc.d
rm -rf etc/gate25 var/lib/gate25 var/lib/gate25-guard
rm -rf run dev
mkdir run dev dev/pts dev/shm
for device in null:3 zero:5 full:7 random:8 urandom:9; do
  mknod -m 0666 "dev/${device%:*}" c 1 "${device#*:}"
done
# Nobody reads what it would show.
mknod -m 0600 dev/console c 1 3
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
mkdir -p etc/systemd/system etc/rc2.d
ln -s /lib/systemd/system/multi-user.target etc/systemd/system/default.target
# Keeps its journal, to be read after the machine's end.
mkdir -p var/log/journal
# Nobody sits here, and nothing but the test mounts.
for unit in getty.target systemd-logind.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
  sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount; do
  ln -s /dev/null "etc/systemd/system/$unit"
done
# No file systems of the machine's, no names of its network.
: >etc/fstab
rm -f etc/resolv.conf
: >etc/resolv.conf
