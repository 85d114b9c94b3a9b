# shellcheck shell=sh
# Removes a lab: its processes, its cgroups, its folder. Namespaces and mounts go with the processes.
# Waits for the end of its input first, which is the end of the process that owns the lab.
#   $1 the lab's cgroup   $2 the lab's folder
trap '' INT TERM HUP
word=
read -r word
[ "$word" = keep ] && exit 0
if [ -d "$1" ]; then
  echo 1 >"$1/cgroup.kill"
  tries=0
  while find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; [ -d "$1" ]; do
    tries=$((tries + 1))
    [ "$tries" -gt 200 ] && { echo "cannot remove $1: processes are left" >&2; exit 1; }
    sleep 0.02
  done
fi
rm -rf --one-file-system -- "$2"
