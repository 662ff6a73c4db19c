#!/bin/sh
# Keeps a wg-quick interface up for as long as this runs: interface.sh NAME KEY-FILE
set -eu

name=$1 key=$2

say() { printf '%s\n' "wireguard: $*" >&2; }

# Secrets may be decrypted after daemons have started; launchd tries again where this gives up.
left=${MUSTER_WAIT_SECONDS:-120}
until [ -s "$key" ]; do
  if [ "$left" -le 0 ]; then
    say "$key is not there. Generate this machine's variables, and see that it can decrypt them."
    exit 1
  fi
  left=$((left - 1))
  sleep 1
done

# What an earlier run left, with its old configuration.
wg-quick down "$name" 2> /dev/null || true

down() {
  trap - TERM INT
  wg-quick down "$name" || true
  exit 0
}
trap down TERM INT

wg-quick up "$name"
interface=$(cat "${MUSTER_WIREGUARD_RUN:-/var/run/wireguard}/$name.name")
# In the background, so that the signal is heard at once.
while wg show "$interface" > /dev/null 2>&1; do
  sleep "${MUSTER_LOOK_SECONDS:-5}" &
  wait "$!" || true
done
say "$interface is gone; launchd makes it anew."
exit 1
