# shellcheck shell=sh
# Sets up a guest: addresses and routes on the one interface that it has.
for setting in all default eth0; do
  echo 0 >"/proc/sys/net/ipv6/conf/$setting/accept_dad"
done
ip link set lo up
ip link set eth0 up
ip addr add @V4@/24 dev eth0
ip addr add @V6@/64 dev eth0
ip route add default via @GATEWAY4@
ip -6 route add default via @GATEWAY6@
