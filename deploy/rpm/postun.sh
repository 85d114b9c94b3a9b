# shellcheck shell=sh
# Only `teardown` opens.
if [ -d /run/systemd/system ]; then systemctl daemon-reload >/dev/null 2>&1 || :; fi
