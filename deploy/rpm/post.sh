# shellcheck shell=sh
# What enforces stays in the kernel whatever happens here: an upgrade that fails halfway opens nothing.
systemd-sysusers gate25.conf || exit 1
# Names customers, their networks and tickets.
[ -d /etc/gate25/policy.d ] || install -d -m 0750 -g gate25 /etc/gate25/policy.d
[ -d /var/lib/gate25-guard ] || install -d -m 0755 /var/lib/gate25-guard
# May hold passwords' hashes. Whoever changed the owner meant it.
if [ -f /etc/gate25/web.yaml ] && [ "$(stat -c %U:%G /etc/gate25/web.yaml)" = root:root ]; then
  chgrp gate25 /etc/gate25/web.yaml
  chmod 0640 /etc/gate25/web.yaml
fi
rm -f /var/lib/gate25-guard/gate25
if [ "$1" -eq 1 ]; then
  systemctl --no-reload preset gate25-guard.service gate25.service >/dev/null 2>&1 || :
  # What the settings on disk say: they may have been there before the package.
  case $(gate25 enforcement 2>/dev/null || :) in
    observe)
      cat <<'EOF'
gate25 is installed and will observe this host: it counts what guests send to TCP port 25 and refuses
nothing.
  start it, now and at boot: systemctl enable --now gate25-guard gate25
  see what it would refuse:  gate25 status; gate25 list customers
  write the policy:          /etc/gate25/policy.d/*.yaml (examples: /usr/share/doc/gate25/examples)
  then enforce it:           set `enforcement: policy` in /etc/gate25/gate25.yaml,
                             gate25 check && systemctl restart gate25
EOF
      ;;
    policy)
      cat <<'EOF'
gate25 is installed and will ENFORCE on this host, as /etc/gate25/gate25.yaml says: what guests send to TCP port
25 is refused, but for what the policy in /etc/gate25/policy.d allows.
  start it, now and at boot: systemctl enable --now gate25-guard gate25
  only count for now:        set `enforcement: observe` in /etc/gate25/gate25.yaml before
EOF
      ;;
    *)
      cat <<'EOF'
gate25 is installed and will not start: /etc/gate25/gate25.yaml is not valid.
  see what is wrong:         gate25 check
EOF
      ;;
  esac
fi
if [ -d /run/systemd/system ]; then
  systemctl daemon-reload >/dev/null 2>&1 || :
  # Never stopped for an upgrade. The new version takes over what the old one left.
  if [ "$1" -gt 1 ]; then systemctl try-restart gate25.service >/dev/null 2>&1 || :; fi
fi
