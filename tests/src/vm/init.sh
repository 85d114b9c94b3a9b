#!/bin/sh
# The first process of a virtual machine: loads modules, sets the machine up, then takes commands.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
@MODULES@
@SETUP@
exec sh /commands.sh
