# shellcheck shell=sh
# Becomes the systemd of a Debian on a disk. What takes commands is put beside what is on the disk, in
# memory: the disk stays as an installation left it.
mount -t ext4 /dev/vda /root
mount -t tmpfs -o mode=0755 run /root/run
units=/root/run/systemd/system
mkdir -p "$units/multi-user.target.wants"
cp /commands.sh /root/run/commands.sh
cat >"$units/commands.service" <<'UNIT'
[Unit]
Description=Takes commands over the second serial line
[Service]
Environment=HOME=/root LC_ALL=C.UTF-8 TERM=dumb DPKG_COLORS=never DEBIAN_FRONTEND=noninteractive
ExecStart=/bin/sh /run/commands.sh
UNIT
ln -s ../commands.service "$units/multi-user.target.wants/commands.service"
# Nobody logs in over the line that shows the kernel's messages.
ln -s /dev/null "$units/serial-getty@ttyS0.service"
for place in dev proc sys; do
  mount --move "/$place" "/root/$place"
done
exec switch_root /root /sbin/init
