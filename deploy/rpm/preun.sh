# shellcheck shell=sh
# An upgrade stops nothing. A removal stops the agent, and leaves what it has put into the kernel.
if [ "$1" -eq 0 ]; then
  if [ -x /usr/bin/gate25 ]; then
    install -d -m 0755 /var/lib/gate25-guard
    install -m 0755 /usr/bin/gate25 /var/lib/gate25-guard/gate25
  fi
  if [ -d /run/systemd/system ]; then
    systemctl --no-reload disable --now gate25.service gate25-guard.service >/dev/null 2>&1 || :
  fi
  cat <<'EOF'
gate25 is removed, and what it has closed stays closed until the next boot: the policy is enforced as it
was, and exemptions end on time. Of guests that are new or start again, the guard stops those on interfaces
that it covers, tap* and vnet* unless the settings say otherwise, and none with `guard: false` or `enforcement:
observe`; new containers are closed below a cgroup that was closed;
others may send. This opens everything:
  /var/lib/gate25-guard/gate25 teardown && rm -rf /var/lib/gate25 /var/lib/gate25-guard
EOF
fi
