# shellcheck shell=sh
# Makes files of the machine outside the root: all of them below a layer in memory, or copies.
mkdir /below
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 root /below
@FILES@
cd /root || exit
for place in dev proc sys; do
  mkdir -p "$place"
  mount --move "/$place" "$place"
done
for place in run tmp dev/shm; do
  mkdir -p "$place"
  mount -t tmpfs tmpfs "$place"
done
chmod 1777 tmp dev/shm
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
mkdir -p dev/pts
mount -t devpts -o ptmxmode=0666 devpts dev/pts
mount -t cgroup2 cgroup2 sys/fs/cgroup
for controller in cpu memory pids; do
  echo "+$controller" >sys/fs/cgroup/cgroup.subtree_control
done
mount -t bpf bpf sys/fs/bpf
ip link set lo up
cp /commands.sh run/commands.sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec switch_root /root /bin/sh /run/commands.sh
