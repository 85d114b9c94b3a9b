#!/bin/sh
# The first process of the virtual machine: sets the network up, then takes commands.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
@MODULES@
for setting in all default eth0; do
  echo 0 >"/proc/sys/net/ipv6/conf/$setting/accept_dad"
done
ip link set lo up
ip link set eth0 up
ip addr add @V4@/24 dev eth0
ip addr add @V6@/64 dev eth0
ip route add default via @GATEWAY4@
ip -6 route add default via @GATEWAY6@
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo READY
while read -r line; do
  eval "$line"
  echo "CODE $? END"
done
poweroff -f
