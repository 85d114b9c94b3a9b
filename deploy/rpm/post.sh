# shellcheck shell=sh
# What enforces stays in the kernel whatever happens here: an upgrade that fails halfway opens nothing.
systemd-sysusers gate25.conf || exit 1
for folder in /etc/gate25/policy.d /var/lib/gate25-guard; do
  [ -d "$folder" ] || install -d -m 0755 "$folder"
done
# May hold passwords' hashes. Whoever changed the owner meant it.
if [ -f /etc/gate25/web.yaml ] && [ "$(stat -c %U:%G /etc/gate25/web.yaml)" = root:root ]; then
  chgrp gate25 /etc/gate25/web.yaml
  chmod 0640 /etc/gate25/web.yaml
fi
rm -f /var/lib/gate25-guard/gate25
if [ "$1" -eq 1 ]; then
  systemctl --no-reload preset gate25-guard.service gate25.service >/dev/null 2>&1 || :
  cat <<'EOF'
gate25 is installed and will observe this host: it counts what guests send to TCP port 25 and refuses
nothing.
  start it, now and at boot: systemctl enable --now gate25-guard gate25
  see what it would refuse:  gate25 status; gate25 list customers
  write the policy:          /etc/gate25/policy.d/*.yaml (examples: /usr/share/doc/gate25/examples)
  then enforce it:           set `enforcement: policy` in /etc/gate25/gate25.yaml,
                             gate25 check && systemctl restart gate25
EOF
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload >/dev/null 2>&1 || :
  # Never stopped for an upgrade. The new version takes over what the old one left.
  if [ "$1" -gt 1 ]; then systemctl try-restart gate25.service >/dev/null 2>&1 || :; fi
fi
