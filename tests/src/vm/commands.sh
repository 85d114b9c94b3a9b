# shellcheck shell=sh
# Takes a line of shell at a time over the second serial line. Behind its output comes a mark with
# its exit code, and nothing else goes over that line.
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
printf '\001READY\001\n'
while read -r line; do
  eval "$line"
  printf '\001%s\001\n' "$?"
done
poweroff -f
