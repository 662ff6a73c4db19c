#!/bin/sh
# Runs Syncthing with the fleet's identity, and tells it the fleet's devices and folders by its REST API.
#
#   syncthing.sh HOME KEY CERT API-KEY WANTED
#
# WANTED is JSON: {"override": …, "devices": […], "folders": […]}, each as the API has them.
set -eu

home=$1 key=$2 cert=$3 api=$4 wanted=$5
gui=${MUSTER_SYNCTHING_GUI:-127.0.0.1:8384}

say() { printf '%s\n' "syncthing: $*" >&2; }
die() {
  say "$*"
  exit 1
}

umask 077
mkdir -p "$home"
left=${MUSTER_WAIT_SECONDS:-120}
until [ -s "$key" ] && [ -s "$cert" ] && [ -s "$api" ]; do
  [ "$left" -gt 0 ] || die "$key, $cert or $api is not there. Generate this machine's variables, and see that it can decrypt them."
  left=$((left - 1))
  sleep 1
done

for pair in "$key key.pem" "$cert cert.pem"; do
  name=${pair##* }
  if [ -s "$home/$name" ] && ! cmp -s "${pair% *}" "$home/$name"; then
    say "this machine had another identity; it is kept in $home/$name.before"
    mv "$home/$name" "$home/$name.before"
  fi
  cp -f "${pair% *}" "$home/$name.new"
  mv "$home/$name.new" "$home/$name"
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The key goes by a file: other users can read a command line.
printf 'X-API-Key: %s\n' "$(cat "$api")" > "$scratch/header"
call() {
  curl --silent --show-error --fail --max-time 20 --max-filesize 50000000 --noproxy '*' --header "@$scratch/header" "$@"
}

STGUIAPIKEY=$(cat "$api")
export STGUIAPIKEY
syncthing serve --home="$home" --no-browser --no-restart --gui-address="http://$gui" &
daemon=$!
trap 'kill "$daemon" 2> /dev/null || true; wait "$daemon" || true; rm -rf "$scratch"; exit 0' TERM INT

left=${MUSTER_WAIT_SECONDS:-120}
until call "http://$gui/rest/system/ping" > /dev/null 2> "$scratch/error"; do
  kill -0 "$daemon" 2> /dev/null || die "syncthing ended."
  [ "$left" -gt 0 ] || {
    kill "$daemon"
    die "syncthing does not answer at $gui: $(cat "$scratch/error")"
  }
  left=$((left - 1))
  sleep 1
done
own=$(call "http://$gui/rest/system/status" | jq -r .myID)

# Devices come before the folders that name them, and go after.
for kind in devices folders; do
  jq -c ".${kind}[]" "$wanted" > "$scratch/$kind"
  while IFS= read -r one; do
    printf '%s' "$one" > "$scratch/one"
    id=$(jq -r 'if has("deviceID") then .deviceID else .id end' "$scratch/one")
    # What the operator does not say stays as it is.
    if call "http://$gui/rest/config/$kind/$id" > /dev/null 2>&1; then method=PATCH; else method=PUT; fi
    call --request "$method" --data-binary "@$scratch/one" --header 'Content-Type: application/json' \
      "http://$gui/rest/config/$kind/$id" > /dev/null || die "syncthing refuses $id of the $kind."
  done < "$scratch/$kind"
done
if [ "$(jq -r .override "$wanted")" = true ]; then
  for kind in folders devices; do
    if [ "$kind" = devices ]; then id=.deviceID; else id=.id; fi
    call "http://$gui/rest/config/$kind" | jq -r ".[] | $id" > "$scratch/there"
    jq -r ".${kind}[] | $id" "$wanted" > "$scratch/kept"
    while IFS= read -r one; do
      if [ "$one" != "$own" ] && ! grep -qxF "$one" "$scratch/kept"; then
        say "removing $one, which the fleet does not have"
        call --request DELETE "http://$gui/rest/config/$kind/$one" > /dev/null || say "$one stays: syncthing refuses."
      fi
    done < "$scratch/there"
  done
fi
say "has the fleet's devices and folders"

status=0
wait "$daemon" || status=$?
exit "$status"
