#!/bin/sh
# Starts a guest, as far as the host can tell: an interface on the bridge, whose owner sends to port 25 as
# soon as it is up. What became of that, and when the interface was made, is in /run/guestNUMBER.*.
#   $1 its number
set -eu
here=$(dirname "$0")
guest=guest$1
ip netns add "$guest"
ip -n "$guest" link set lo up
ip netns exec "$guest" nft -f "$here/sent.nft"
cut -d ' ' -f 1 /proc/uptime >"/run/$guest.born"
ip link add "tap10$1i0" type veth peer name eth0 netns "$guest"
ip -n "$guest" addr add "198.51.100.1$1/24" dev eth0
ip -n "$guest" addr add "2001:db8:100::1$1/64" dev eth0 nodad
ip -n "$guest" link set eth0 up
ip link set "tap10$1i0" master vmbr0 up
ip -n "$guest" route add default via 198.51.100.1
ip -n "$guest" -6 route add default via 2001:db8:100::1
ip netns exec "$guest" "$here/gate25-tenant" once '203.0.113.25:25' '[2001:db8:113::25]:25' >"/run/$guest.outcomes"
