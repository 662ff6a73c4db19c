# The round trip: machines that enrol, are accepted, replaced and removed; operators who come and go. Read by
# tests/secrets.
# shellcheck shell=bash disable=SC2154,SC2034

set_up() {
  new_fleet fleet
  port=$(free_port)
  muster init --dir "$work/config" --url "http://127.0.0.1:$port" --plain-keys > /dev/null
  muster serve --config "$work/config/controller/controller.toml" > "$work/controller.log" 2>&1 &
  started $!
  echo "flake = \"$work/fleet\"" >> "$work/config/muster.toml"
  wait_for "an answer of the controller" 60 muster --config "$work/config/muster.toml" status
}
export MUSTER_CONFIG=$work/config/muster.toml
age_of() { muster machines show "$1" --json | jq -r "$2"; }
# Makes a machine in a folder, enrols it with joe's token, and lets its agent check in.
enrol() {
  local name=$1 class=$2 system=$3 token store=()
  own_stores || store=(--host-store)
  muster-machine new "$work/$name" --class "$class" --system "$system" --agent "$bin/muster-agent" ${store[@]+"${store[@]}"}
  token=$(as joe muster machines add "$name" --class "$class" --system "$system" 2> /dev/null)
  muster-agent --config "$work/$name/etc/muster/agent.toml" enrol - <<< "$token" 2>> "$work/$name.log"
  run_agent "$name"
}
run_agent() {
  muster-agent --config "$work/$1/etc/muster/agent.toml" run >> "$work/$1.log" 2>&1 &
  echo $! > "$work/$1.pid"
  started $!
  wait_for "a proof of $1's key" 60 proved "$1"
}
proved() { [ "$(age_of "$1" .age_proof)" != null ]; }
stop_agent() { end_process "$(cat "$work/$1.pid")"; }
state() { find "$work/$1" -name age.txt -path '*muster*' | head -n 1; }

begin() {
  set_up
  as joe muster vars keygen --flake "$work/fleet" > /dev/null
  commit "$work/fleet"
  enrol tin nixos "$(host_cpu)-linux"
  enrol iron darwin aarch64-darwin
}

made_for_both() {
  cd "$work/fleet"
  local said
  said=$(as joe muster vars generate --yes --answers "$work/answers")
  contains "$said" "ca for shared by iron, tin: missing"
  contains "$said" "Made 7 generators:"
  commit .
  as joe muster vars check
  # Nothing is left to make, and nothing is made twice.
  local before
  before=$(tree_of .)
  contains "$(as joe muster vars generate --yes)" "Nothing to make."
  same "$(tree_of .)" "$before"
}
accepted() {
  cd "$work/fleet"
  local said
  said=$(as joe muster machines accept tin --yes)
  contains "$said" "A sops/machines/tin/key.json"
  contains "$said" "R vars/per-machine/tin/token/key/secret  +tin"
  as joe muster machines accept iron --yes
  commit .
  contains "$(as joe muster machines accept tin --yes)" "reads what it should"
  contains "$(as joe muster vars check)" "as they should be"
  same "$(jq -r '.[0].publickey' sops/machines/tin/key.json)" "$(age-keygen -y "$(state tin)")"
}
each_reads_its_own() {
  cd "$work/fleet"
  local secret name other value
  for secret in $(secrets_of .); do
    for name in tin iron; do
      other=$([ $name = tin ] && echo iron || echo tin)
      case $secret in
        vars/shared/ca/key) reads_not "$(state $name)" "$secret" ;;
        vars/shared/* | vars/per-machine/$name/*)
          value=$(reads "$(state $name)" "$secret") || { echo "$name does not read $secret" && return 1; }
          same "$value" "$(as joe muster vars get $name "$(basename "$(dirname "$secret")")/$(basename "$secret")")"
          ;;
        vars/per-machine/$other/*) reads_not "$(state $name)" "$secret" ;;
      esac
    done
  done
  same "$(as joe muster vars get iron asked/word)" swordfish
  contains "$(cat vars/per-machine/iron/token/pub/value)" "the machine is iron"
}
operators_come_and_go() {
  cd "$work/fleet"
  as eve muster vars keygen > "$work/said"
  contains "$(cat "$work/said")" "muster vars fix --add-user eve"
  commit .
  local eve=$work/home/eve/.config/sops/age/keys.txt secret said
  for secret in $(secrets_of .); do reads_not "$eve" "$secret"; done
  as joe muster vars fix --add-user eve --yes tin > /dev/null
  reads "$eve" vars/per-machine/tin/token/key > /dev/null
  reads_not "$eve" vars/per-machine/iron/token/key
  as joe muster vars fix --add-user eve --yes > /dev/null
  commit .
  for secret in $(secrets_of .); do reads "$eve" "$secret" > /dev/null; done
  as eve muster vars set tin token/key <<< "eve was here" > /dev/null
  same "$(as joe muster vars get tin token/key)" "eve was here"
  same "$(reads "$(state tin)" vars/per-machine/tin/token/key)" "eve was here"
  as joe muster vars check
  said=$(as joe muster vars fix --remove-user eve --yes)
  contains "$said" "Give them new values"
  contains "$said" "token/key of iron"
  for secret in $(secrets_of .); do
    reads_not "$eve" "$secret"
    [ ! -e "$secret/users/eve" ]
    reads "$(state tin)" "$secret" > /dev/null || [[ $secret == */iron/* || $secret == */ca/key ]]
  done
  [ ! -e sops/users/eve ]
  commit .
  as joe muster vars check
}
# The group that new secrets are for, by Clan's option as well as by ours.
operators_in_a_group() {
  cd "$work/fleet"
  as bob muster vars keygen --group operators > /dev/null
  same "$(readlink sops/groups/operators/users/bob)" ../../../users/bob
  extra fleet 'grouped.files.key = { }; grouped.script = "echo grouped > $out/key";'
  sed -i 's|{ muster.vars.generators = all; }|{ muster.vars = { generators = all; defaultGroups = [ "operators" ]; }; }|' plain.nix
  git add -A
  as joe muster vars generate --yes --generator grouped > /dev/null
  local key=vars/per-machine/tin/grouped/key
  same "$(readlink $key/groups/operators)" ../../../../../../sops/groups/operators
  same "$(reads "$work/home/bob/.config/sops/age/keys.txt" $key)" grouped
  reads_not "$work/home/bob/.config/sops/age/keys.txt" vars/per-machine/tin/token/key
  as joe muster vars fix --yes > /dev/null
  reads "$work/home/bob/.config/sops/age/keys.txt" vars/per-machine/tin/token/key > /dev/null
  git checkout -q .
  git clean -qfd
}
replaced() {
  cd "$work/fleet"
  local old=$work/old-key token said
  cp "$(state tin)" "$old"
  stop_agent tin
  token=$(as joe muster machines add tin --class nixos --system "$(host_cpu)-linux" --replace 2> /dev/null)
  muster-agent --config "$work/tin/etc/muster/agent.toml" enrol --replace - <<< "$token" 2>> "$work/tin.log"
  run_agent tin
  said=$(as joe muster machines accept tin --yes)
  contains "$said" "in place of $(age-keygen -y "$old")"
  contains "$said" "Give them new values"
  contains "$said" "token/key of tin"
  reads "$(state tin)" vars/per-machine/tin/token/key > /dev/null
  reads_not "$old" vars/per-machine/tin/token/key
  reads_not "$old" vars/shared/ca/shared
  commit .
}
renewed() {
  cd "$work/fleet"
  local old=$work/before-renewal said
  cp "$(state iron)" "$old"
  muster-agent --config "$work/iron/etc/muster/agent.toml" renew-age-key > "$work/said"
  new_claim() { [ "$(age_of iron .age)" != "$(age-keygen -y "$old")" ]; }
  wait_for "the new key at the controller" 60 new_claim
  contains "$(as joe muster machines accept iron --yes)" "in place of $(age-keygen -y "$old")"
  reads_not "$old" vars/per-machine/iron/token/key
  # The machine itself still reads what it ran before, to be able to go back.
  same "$(grep -c AGE-SECRET-KEY "$(state iron)")" 2
  git show "HEAD:vars/per-machine/iron/token/key/secret" > "$work/older-secret"
  reads "$(state iron)" vars/per-machine/iron/token/key > /dev/null
  SOPS_AGE_KEY_FILE=$(state iron) sops decrypt --input-type binary --output-type binary "$work/older-secret" > /dev/null
  commit .
}
# If a controller names another key than the machine's, no secret is encrypted to it.
lying_controller() {
  cd "$work/fleet"
  local mine=$work/thief before
  age-keygen -o "$mine" 2> /dev/null
  before=$(tree_of .)
  python3 - "$work/config/controller" "$(age-keygen -y "$(state tin)")" "$(age-keygen -y "$mine")" <<'TEXT'
import glob, sqlite3, sys
folder, old, new = sys.argv[1:]
for path in glob.glob(folder + "/**/*.sqlite*", recursive=True) + glob.glob(folder + "/**/*.db", recursive=True):
    if path.endswith(("-wal", "-shm")): continue
    with sqlite3.connect(path, timeout=30) as sql:
        sql.execute("UPDATE machines SET age = replace(age, ?, ?), observed = replace(observed, ?, ?)", (old, new, old, new))
TEXT
  stop_agent tin
  same "$(age_of tin .age)" "$(age-keygen -y "$mine")"
  refuses "is not proved to be tin's" as joe muster machines accept tin --yes
  # An operator who did not make the token compares the key with the machine's.
  mv "$work/config/witnesses/tin" "$work/witness"
  refuses "nothing proves that the key is tin's" as joe muster machines accept tin --yes < /dev/null
  refuses "the controller says that tin has the key" as joe muster machines accept tin --yes --recipient "$(age-keygen -y "$(state tin)")"
  mv "$work/witness" "$work/config/witnesses/tin"
  same "$(tree_of .)" "$before"
  run_agent tin
  true_again() { [ "$(age_of tin .age)" = "$(age-keygen -y "$(state tin)")" ]; }
  wait_for "the machine's own word" 60 true_again
  as joe muster machines accept tin --yes
}
removed() {
  cd "$work/fleet"
  local said secret
  stop_agent iron
  # No other machine has to be evaluated for it.
  echo '{ pkgs, name }: if name == "tin" then throw "tin is not finished" else { }' > extra.nix
  git add extra.nix
  fails as joe muster vars check
  said=$(as joe muster machines remove iron --yes)
  git checkout -q HEAD -- extra.nix
  contains "$said" "D sops/machines/iron/"
  contains "$said" "token/key of iron"
  contains "$said" "ca/shared (shared)"
  contains "$said" "iron is revoked"
  contains "$said" "The flake still describes iron"
  contains "$said" "git add"
  # Once is enough: there is nothing left to revoke or change.
  said=$(as joe muster machines remove iron --yes)
  contains "$said" "iron was removed already"
  lacks "git add|is revoked" <<< "$said"
  same "$(muster audit --machine iron --json | jq '[.[] | select(.action == "machine-revoked")] | length')" 1
  for secret in $(secrets_of .); do reads_not "$(state iron)" "$secret"; done
  same "$(find vars sops -name iron -type l | wc -l)" 0
  same "$(age_of iron .standing)" revoked
  reads "$(state tin)" vars/shared/ca/shared > /dev/null
  refuses "is revoked" as joe muster machines accept iron --yes
  commit .
}
# What the agent does before a switch, with the sops that the system names.
on_the_machine() {
  cd "$work/fleet"
  local system=$work/system added sops secret source own
  own="local?root=$work/tin"
  own_stores || own=
  mkdir -p "$system/etc/muster"
  add() { NIX_REMOTE=$own nix-store --add "$1"; }
  sops=$(add "$real_sops")
  for secret in vars/per-machine/tin/cert/key vars/per-machine/iron/cert/key; do
    source=$(add "$secret/secret")
    jq -n --arg sops "$sops" --arg source "$source" --arg name "$(basename "$(dirname "$secret")")/key" '{version: 1,
      $sops, directory: "/run/muster/activation-secrets", files: [{$name, $source, owner: "root", group: "root",
      mode: "0440"}]}' > "$system/etc/muster/activation-secrets.json"
    added=$(add "$system")
    if [[ $secret == */tin/* ]]; then
      muster-agent --config "$work/tin/etc/muster/agent.toml" secrets --system "$added"
      same "$(cat "$work/tin/run/muster/activation-secrets/cert/key")" "$(as joe muster vars get tin cert/key)"
      same "$(stat -c %a "$work/tin/run/muster/activation-secrets/cert/key")" 440
      same "$(stat -c %a "$work/tin/run/muster/activation-secrets")" 711
    else
      refuses "this machine's key does not read cert/key" muster-agent --config "$work/tin/etc/muster/agent.toml" secrets --system "$added"
    fi
  done
}
