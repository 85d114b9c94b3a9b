# shellcheck shell=sh
# Makes the files of the machine outside the root, read-only below a layer in memory.
mkdir /below /above
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=262144 root /below
mount -t tmpfs above /above
mkdir /above/files /above/work
mount -t overlay -o lowerdir=/below,upperdir=/above/files,workdir=/above/work root /root
for place in dev proc sys; do
  mount --move "/$place" "/root/$place"
done
cd /root || exit
for place in run tmp dev/shm; do
  mkdir -p "$place"
  mount -t tmpfs tmpfs "$place"
done
chmod 1777 tmp dev/shm
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
