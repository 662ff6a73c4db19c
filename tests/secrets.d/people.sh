# Fleets, operators, and showing them. Read by tests/secrets.
# shellcheck shell=bash disable=SC2154,SC2034

# A flake of the fixture's, in git.
new_fleet() {
  local folder=$work/$1
  cp -R "$repository/tests/fixtures/secrets" "$folder"
  chmod -R u+w "$folder"
  mkdir "$folder/packages/programs"
  cp "$(command -v bash-static)" "$folder/packages/programs/bash"
  cp "$MUSTER_BUSYBOX" "$folder/packages/programs/busybox"
  echo "\"$(host_cpu)-linux\"" > "$folder/system.nix"
  git -C "$folder" init -q
  commit "$folder"
}
commit() {
  git -C "$1" add -A
  git -C "$1" -c user.name=test -c user.email=test@example.org commit -q --allow-empty -m change
}
# Adds a generator to a machine, from its text.
extra() { printf '{ pkgs, name }: { %s }\n' "$2" > "$work/$1/extra.nix"; git -C "$work/$1" add -A; }
# Runs as an operator, with a home of their own, in the current fleet's folder.
as() {
  local name=$1
  shift
  mkdir -p "$work/home/$name"
  HOME=$work/home/$name XDG_CONFIG_HOME=$work/home/$name/.config LOGNAME=$name "$@"
}
# The same for programs that start others, since they cannot call a function of this shell.
joe_runs=(env LOGNAME=joe HOME="$work/home/joe" XDG_CONFIG_HOME="$work/home/joe/.config")
answers() { printf '{"asked": {"word": "swordfish", "lines": "one\\ntwo\\n"}}' > "$work/answers"; }
answers
make_all() { muster vars generate --yes --answers "$work/answers" --flake "$work/$1" > /dev/null; }
# Every file and link below vars/ and sops/, with its contents, without what is only prepared.
tree_of() {
  # Either folder may be missing.
  (cd "$1" && { find vars sops \( -type f -o -type l \) 2> /dev/null || true; } | LC_ALL=C sort | while read -r path; do
    if [ -L "$path" ]; then echo "$path -> $(readlink "$path")"; else echo "$path $(sha256sum < "$path")"; fi
  done)
}
# Whether a key file can read a fleet's secret.
reads() { SOPS_AGE_KEY_FILE=$1 sops decrypt --input-type binary --output-type binary "$2/secret" 2> /dev/null; }
reads_not() { ! reads "$1" "$2" > /dev/null || { echo "$1 reads $2" && return 1; }; }
secrets_of() { (cd "$1" && find vars -name secret -type f -exec dirname {} \; | LC_ALL=C sort); }
in_memory() { find /dev/shm -maxdepth 1 -name 'muster-vars-*'; }
