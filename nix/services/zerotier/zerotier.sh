#!/bin/sh
# Gives ZeroTier's daemon the identity that the fleet's variables hold and the networks to join, and on a Mac runs it.
#
#   zerotier.sh prepare HOME IDENTITY NETWORKS
#   zerotier.sh run HOME IDENTITY NETWORKS LOCAL-CONF PORT
#
# NETWORKS is a file with a line for each network: its id, then settings of ZeroTier's NETWORK.local.conf.
set -eu

say() { printf '%s\n' "zerotier: $*" >&2; }
die() {
  say "$*"
  exit 1
}

# A file that is there whole or not at all, and is left alone where it says the same.
put() {
  if [ -f "$1" ] && cmp -s "$1" "$1.new"; then
    rm "$1.new"
  else
    mv "$1.new" "$1"
  fi
}

# Secrets may be decrypted after daemons have started. The supervisor tries again where this gives up, which systemd wants
# within 90 seconds.
await_identity() {
  left=${MUSTER_WAIT_SECONDS:-60}
  until [ -s "$identity" ]; do
    [ "$left" -gt 0 ] || die "$identity is not there. Generate this machine's variables, and see that it can decrypt them."
    left=$((left - 1))
    sleep 1
  done
}

take_identity() {
  if ! grep -Eq '^[0-9a-f]{10}:0:[0-9a-f]{128}:[0-9a-f]{128}$' "$identity"; then
    die "$identity is no secret identity of ZeroTier. Generate zerotier-identity of this machine anew."
  fi
  if [ -s "$home/identity.secret" ] && ! cmp -s "$identity" "$home/identity.secret"; then
    if [ "$(tr -d '\n' < "$identity")" != "$(tr -d '\n' < "$home/identity.secret")" ]; then
      say "this machine had another identity; it is kept in $home/identity.secret.before"
      mv "$home/identity.secret" "$home/identity.secret.before"
    fi
  fi
  tr -d '\n' < "$identity" > "$home/identity.secret.new"
  put "$home/identity.secret"
  cut -d : -f 1-3 "$home/identity.secret" | tr -d '\n' > "$home/identity.public.new"
  put "$home/identity.public"
}

# NETWORK.conf is what the controller said last, which the daemon keeps; that it is there makes the daemon join.
take_networks() {
  mkdir -p "$home/networks.d"
  ours=$home/networks.d/.muster
  [ -e "$ours" ] || : > "$ours"
  while read -r network settings; do
    [ -n "$network" ] || continue
    [ -e "$home/networks.d/$network.conf" ] || : > "$home/networks.d/$network.conf"
    for setting in $settings; do printf '%s\n' "$setting"; done > "$home/networks.d/$network.local.conf.new"
    put "$home/networks.d/$network.local.conf"
  done < "$networks"
  # Networks that somebody joined by hand stay.
  while read -r network; do
    grep -Eq "^$network( |\$)" "$networks" || rm -f "$home/networks.d/$network.conf" "$home/networks.d/$network.local.conf"
  done < "$ours"
  cut -d ' ' -f 1 "$networks" > "$ours.new"
  put "$ours"
}

prepare() {
  umask 077
  mkdir -p "$home"
  await_identity
  take_identity
  take_networks
}

# The agent that makes the interface must lie beside the identity, and be the daemon's own.
take_agent() {
  agent=$(dirname "$(command -v zerotier-one)")/MacEthernetTapAgent
  [ -x "$agent" ] || die "$agent is missing: this zerotierone cannot make an interface on a Mac."
  cp -f "$agent" "$home/MacEthernetTapAgent.new"
  chmod 755 "$home/MacEthernetTapAgent.new"
  put "$home/MacEthernetTapAgent"
}

mode=${1:-}
[ "$#" -ge 4 ] || die "it wants a mode, a home, an identity and networks."
home=$2 identity=$3 networks=$4
case $mode in
  prepare) prepare ;;
  run)
    [ "$#" -eq 6 ] || die "run wants a local.conf and a port as well."
    foreign=${MUSTER_FOREIGN_ZEROTIER:-/Library/LaunchDaemons/com.zerotier.one.plist}
    if [ -e "$foreign" ]; then
      die "ZeroTier was installed on this Mac by hand and would be in the way. Uninstall it (with Homebrew: brew uninstall --cask zerotier-one); $foreign must be gone."
    fi
    prepare
    cp -f "$5" "$home/local.conf.new"
    put "$home/local.conf"
    take_agent
    exec zerotier-one "-p$6" "$home"
    ;;
  *) die "it knows prepare and run, not '$mode'." ;;
esac
