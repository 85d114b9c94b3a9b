#!/bin/sh
# Makes the world that guests send to, and the bridge that they are on: a host of the Internet in a
# namespace, routed to, which counts what arrives at port 25.
set -eu
here=$(dirname "$0")
ip netns add far
ip link add uplink0 type veth peer name eth0 netns far
ip addr add 203.0.113.1/24 dev uplink0
ip addr add 2001:db8:113::1/64 dev uplink0 nodad
ip link set uplink0 up
ip -n far addr add 203.0.113.25/24 dev eth0
ip -n far addr add 2001:db8:113::25/64 dev eth0 nodad
ip -n far link set lo up
ip -n far link set eth0 up
ip -n far route add default via 203.0.113.1
ip -n far -6 route add default via 2001:db8:113::1
ip netns exec far nft -f "$here/witness.nft"
ip link add vmbr0 type bridge
ip addr add 198.51.100.1/24 dev vmbr0
ip addr add 2001:db8:100::1/64 dev vmbr0 nodad
ip link set vmbr0 up
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
