#!/bin/sh
# Tells the controller in this host's zerotier-one what a network is like and who its members are.
#
#   controller.sh HOME PORT NETWORK CONFIGURATION MEMBERS
#
# CONFIGURATION is JSON for the controller's API; MEMBERS has a node on each line. Who was a member of the fleet and is
# no longer loses the network; who was let in by hand stays.
set -eu

home=$1 port=$2 network=$3 configuration=$4 members=$5
api=http://127.0.0.1:$port/controller
ours=$home/muster-members.$network

say() { printf '%s\n' "zerotier: $*" >&2; }
die() {
  say "$*"
  exit 1
}

umask 077
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The token goes by a file: other users can read a command line.
call() {
  printf 'X-ZT1-AUTH: %s\n' "$(cat "$home/authtoken.secret")" > "$scratch/header"
  curl --silent --show-error --fail --max-time 20 --max-filesize 10000000 --output "$scratch/answer" \
    --header "@$scratch/header" "$@"
}

left=${MUSTER_WAIT_SECONDS:-120}
until [ -s "$home/authtoken.secret" ] && call "http://127.0.0.1:$port/status" 2> "$scratch/error"; do
  [ "$left" -gt 0 ] || die "zerotier-one does not answer on port $port: $(cat "$scratch/error" 2> /dev/null)"
  left=$((left - 1))
  sleep 1
done
call "$api" 2> "$scratch/error" ||
  die "this zerotier-one has no controller: $(cat "$scratch/error"). Build zerotierone with enableUnfree = true."

call --data-binary "@$configuration" "$api/network/$network" ||
  die "the controller refuses network $network."

# Those of before are written down first with the new ones, so that nobody is forgotten if this is interrupted.
[ -e "$ours" ] || : > "$ours"
sort -u "$ours" "$members" > "$ours.new"
mv "$ours.new" "$ours"
while read -r node; do
  if grep -qx "$node" "$members"; then may=true; else may=false; fi
  call --data-binary "{\"authorized\": $may}" "$api/network/$network/member/$node" ||
    die "the controller does not take member $node."
done < "$ours"
sort -u "$members" > "$ours.new"
mv "$ours.new" "$ours"
say "network $network has $(grep -c . "$members") members of the fleet."
