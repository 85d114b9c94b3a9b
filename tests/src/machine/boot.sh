# shellcheck shell=sh
# Becomes systemd, in namespaces for processes, mounts, the host's name, messages and cgroups that are
# already there. What it may change is its own: its files, its network, its part of the cgroup tree, a BPF
# file system that ends with it.
#   $1 the root that root.sh made
set -eu
mount --make-rprivate /
cd "$1"
mount -t proc proc proc
# As containers have it: the kernel's settings are the machine's, but for those of the network.
mount --bind proc/sys/net proc/sys/net
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
if [ -e proc/sysrq-trigger ]; then
  mount --bind /dev/null proc/sysrq-trigger
fi
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t bpf -o mode=0700 bpf sys/fs/bpf
mount -t tmpfs -o mode=0755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
# systemd puts the machine's own devices where there is no mount.
mount --bind dev dev
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
nft flush ruleset
hostname hv1
pivot_root . mnt
cd /
umount -l /mnt
container=gate25-lab
export container
# Not the machine's modules, clock, log and devices.
exec setpriv --bounding-set=-sys_module,-sys_time,-sys_rawio,-syslog,-audit_control,-wake_alarm \
  /lib/systemd/systemd --system --show-status=no --log-target=journal </dev/null >/dev/null 2>&1
