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
mount -t tmpfs -o mode=0755 tmpfs dev
for device in null:3 zero:5 full:7 random:8 urandom:9; do
  mknod -m 0666 "dev/${device%:*}" c 1 "${device#*:}"
done
# Nobody reads what it would show.
mknod -m 0600 dev/console c 1 3
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mkdir -p run/lab
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
