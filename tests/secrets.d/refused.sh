# What is refused, each with a single sentence. Read by tests/secrets.
# shellcheck shell=bash disable=SC2154,SC2034

# One sentence, and at most a hint after it; the exit code is not 0.
refuses() {
  local words=$1 status=0 error
  shift
  "$@" > "$work/out" 2> "$work/error" || status=$?
  [ "$status" != 0 ] || { echo "it was not refused: $*" && cat "$work/out" && return 1; }
  error=$(sed -n '/^error: /,$p' "$work/error")
  [ -n "$error" ] || error=$(grep '^muster-agent: ' "$work/error" || cat "$work/error")
  contains "$error" "$words"
  [ "$(grep -c '^error: ' <<< "$error")" -le 1 ] || { echo "more than one error:" && echo "$error" && return 1; }
  local lines
  lines=$(grep -cv '^hint: ' <<< "$error")
  [ "$lines" -le "${refusal_lines:-1}" ] || { echo "more than one sentence:" && echo "$error" && return 1; }
}
# The same, and the fleet is unchanged.
refuses_and_leaves() {
  local before after
  before=$(tree_of "$work/wrong")
  refuses "$@"
  after=$(tree_of "$work/wrong")
  same "$after" "$before"
  [ ! -e "$work/wrong/.muster-vars" ]
  same "$(in_memory)" ""
}
wrong_fleet() {
  new_fleet wrong
  cd "$work/wrong"
  as joe muster vars keygen --flake "$work/wrong" > /dev/null
  git add -A
  as joe make_all wrong
  commit .
  echo '{ pkgs, name }: { }' > extra.nix
}
generates() { as joe muster vars generate --yes --flake "$work/wrong" "$@"; }
bad_generator() {
  cd "$work/wrong"
  extra wrong "$1"
  refuses_and_leaves "$2" generates "${@:3}"
  extra wrong ''
}

no_sops() { refuses_and_leaves "there is no \`sops\` on PATH" "${joe_runs[@]}" PATH="$bin:/usr/bin:/bin" muster vars get tin token/key --flake "$work/wrong"; }
old_sops() {
  mkdir -p "$work/old"
  printf '#!/bin/sh\necho sops 3.8.1\n' > "$work/old/sops" && chmod +x "$work/old/sops"
  refuses_and_leaves "is version 3.8.1, and 3.9 or newer is needed" "${joe_runs[@]}" PATH="$work/old:$PATH" muster vars get tin token/key --flake "$work/wrong"
}
no_bwrap() {
  mkdir -p "$work/without"
  local program
  for program in nix nix-store nix-instantiate git; do ln -sf "$(command -v $program)" "$work/without/"; done
  extra wrong 'x.files.f = { };'
  refuses_and_leaves "there is no \`bwrap\` on PATH" "${joe_runs[@]}" PATH="$work/programs:$bin:$work/without" muster vars generate --yes --flake "$work/wrong"
  extra wrong ''
}
no_key() { refuses_and_leaves "you have no age key on this computer" as nobody muster vars set tin token/key --flake "$work/wrong" <<< x; }
foreign_key() {
  mkdir -p "$work/home/mallory/.config/sops/age"
  age-keygen 2> /dev/null > "$work/home/mallory/.config/sops/age/keys.txt"
  chmod 600 "$work/home/mallory/.config/sops/age/keys.txt"
  refuses_and_leaves "none of your keys reads token/key of tin" as mallory muster vars get tin token/key --flake "$work/wrong"
  refuses_and_leaves "no operator in sops/users has your key" as mallory muster vars set tin token/key --flake "$work/wrong" <<< x
}
open_key() {
  chmod 644 "$work/home/mallory/.config/sops/age/keys.txt"
  refuses_and_leaves "may be read by others: run \`chmod 600\`" as mallory muster vars set tin token/key --flake "$work/wrong" <<< x
}
no_age_key_in_file() {
  echo hello > "$work/home/mallory/.config/sops/age/keys.txt"
  chmod 600 "$work/home/mallory/.config/sops/age/keys.txt"
  refuses_and_leaves "holds no age key" as mallory muster vars set tin token/key --flake "$work/wrong" <<< x
}
unknown_names() {
  refuses_and_leaves "the flake has no machine gold with a system; it has iron, tin" generates gold
  refuses_and_leaves "none of these machines declares a generator silver" generates --generator silver
  refuses_and_leaves "tin declares no token/nothing; it declares" as joe muster vars set tin token/nothing --flake "$work/wrong" <<< x
  refuses_and_leaves "there is no token/nothing for tin; there is" as joe muster vars get tin token/nothing --flake "$work/wrong"
  refuses_and_leaves "the flake has no machine gold" env -u MUSTER_CONFIG "${joe_runs[@]}" muster machines accept gold --yes --recipient "age1$(printf 'q%.0s' {1..58})" --flake "$work/wrong"
  refuses_and_leaves "there is no machine gold in sops/machines" env -u MUSTER_CONFIG "${joe_runs[@]}" muster machines remove gold --yes --flake "$work/wrong"
  refuses_and_leaves "there is no operator gold in sops/users; there is joe" as joe muster vars fix --add-user gold --yes --flake "$work/wrong"
}
names_that_are_none() {
  # Clap reports these, with its own message and exit code.
  refusal_lines=9 refuses_and_leaves "names no variable: write GENERATOR/FILE" as joe muster vars get tin token --flake "$work/wrong"
  refusal_lines=9 refuses_and_leaves "is not a name for an operator" as joe muster vars keygen --user 'J/E' --flake "$work/wrong"
  refuses_and_leaves "is not a public age key" as joe muster machines accept tin --recipient hello --flake "$work/wrong"
}
no_such_flake() { refusal_lines=4 refuses "cannot read the flake" as joe muster vars list --flake "$work/nowhere"; }
corrupt_file() {
  cd "$work/wrong"
  local file=vars/per-machine/tin/token/key/secret good
  good=$(cat $file)
  echo 'hunter2' > $file
  refuses_and_leaves "vars/per-machine/tin/token/key/secret: it is not JSON" as joe muster vars fix --yes --flake "$work/wrong"
  refuses_and_leaves "sops cannot read token/key of tin" as joe muster vars get tin token/key --flake "$work/wrong"
  fails as joe muster vars check --flake "$work/wrong" > "$work/said"
  contains "$(cat "$work/said")" "token/key of tin"
  lacks hunter2 "$work/said" "$work/error"
  printf '%s\n' "$good" > $file
}
altered_file() {
  cd "$work/wrong"
  local file=vars/per-machine/tin/token/key/secret good
  good=$(cat $file)
  jq --tab '.data = (input | .data)' $file vars/per-machine/iron/token/key/secret > "$work/altered"
  cp "$work/altered" $file
  refuses_and_leaves "token/key of tin was changed after it was encrypted" as joe muster vars get tin token/key --flake "$work/wrong"
  printf '%s\n' "$good" > $file
}
damaged_key() {
  cd "$work/wrong"
  mkdir -p sops/machines/tin
  echo '{"publickey": "hello", "type": "age"}' > sops/machines/tin/key.json
  refuses_and_leaves "the key of the machine tin cannot be used: sops/machines/tin/key.json: 'hello' is not a public key" as joe muster vars fix --yes --flake "$work/wrong"
  rm -r sops/machines
}
empty_group() {
  cd "$work/wrong"
  cp plain.nix "$work/plain.nix"
  sed -i 's|{ muster.vars.generators = all; }|{ muster.vars = { generators = all; defaultGroups = [ "nobody" ]; }; }|' plain.nix
  git add -A
  refuses_and_leaves "encrypted to the group nobody, which has no members" as joe muster vars fix --yes --flake "$work/wrong"
  cp "$work/plain.nix" plain.nix
  git add -A
}
failing_scripts() {
  bad_generator 'x.files.f = { }; x.script = "echo planted-words >&2; exit 7";' "the script of x of iron ended with exit code 7"
  lacks planted-words "$work/error"
  bad_generator 'x.files.f = { }; x.script = "true";' "wrote no file \$out/f; it wrote none"
  bad_generator 'x.files.f = { }; x.script = "ln -s /etc/shadow $out/f";' "is not a plain file"
  bad_generator 'x.files.f = { }; x.script = "mkdir $out/f";' "is not a plain file"
  bad_generator 'x.files.f = { }; x.script = "head -c 5000000 /dev/zero > $out/f";' "is not a plain file of at most"
  bad_generator 'x.files.f = { }; x.script = "sleep 1000";' "did not end within 1 s" --script-seconds 1
  refusal_lines=4 bad_generator 'x.files.f = { }; x.script = throw "no script";' "the script of x of iron cannot be evaluated"
  refusal_lines=4 bad_generator 'x.files.f = { }; x.script = "${derivation { name = "no"; system = pkgs.system; builder = "/no"; }}";' "cannot be built"
}
bad_declarations() {
  bad_generator 'x.files.f = { }; x.dependencies = [ "y" ]; y.files.f = { }; y.dependencies = [ "x" ];' "depend on one another in a circle: x of iron → y of iron → x of iron"
  bad_generator 'x.files.f = { }; x.dependencies = [ "y" ];' "x of iron depends on y, which no machine of this flake declares"
  bad_generator 'x.share = true; x.files.f = { }; x.dependencies = [ "token" ];' "x (shared) depends on token, which is one machine's"
  bad_generator 'x.share = true; x.files.f = { }; x.validation = name;' "iron and tin share the generator x and declare other validation for it"
  bad_generator '"../x".files.f = { };' "'../x' is not a name for a generator"
  bad_generator 'x.files."a/b" = { };' "'a/b' is not a name for a generator"
  bad_generator 'x.script = "true";' "declares no file"
  refusal_lines=4 bad_generator 'x = throw "broken";' "the generators of"
}
answers_that_are_missing() {
  cd "$work/wrong"
  extra wrong 'x.files.f = { }; x.prompts.p = { };'
  refuses_and_leaves "x of iron asks for p, and there is no terminal" setsid -w "${joe_runs[@]}" muster vars generate --yes --flake "$work/wrong" < /dev/null
  echo '{"x": "hunter2"}' > "$work/bad-answers"
  refuses_and_leaves "holds no answers (line 1" generates --answers "$work/bad-answers"
  lacks hunter2 "$work/error"
  refuses_and_leaves "cannot read the answers in" generates --answers "$work/no-answers"
  refuses_and_leaves "nobody is here to agree, and nothing was changed" as joe muster vars generate --flake "$work/wrong" < /dev/null
  extra wrong ''
  refuses_and_leaves "standard input is empty" as joe muster vars set tin token/key --flake "$work/wrong" < /dev/null
}
folders_that_cannot_be_written() {
  cd "$work/wrong"
  extra wrong 'x.files.f = { }; x.script = "echo x > $out/f";'
  : > vars/per-machine/tin/x
  git add -A
  refuses_and_leaves "vars/per-machine/tin/x is in the way" generates
  rm vars/per-machine/tin/x
  git add -A
  read_only() {
    # The operator's Nix reads the repository as well; a read-only disk refuses even root.
    unshare -m sh -c 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"' "$work/wrong" "$@"
  }
  refuses_and_leaves "nothing was changed" read_only "${joe_runs[@]}" muster vars generate --yes --flake "path:$work/wrong"
  extra wrong ''
}
two_at_once() {
  (
    exec 9< "$work/wrong"
    flock -x 9
    refuses "another muster works in" as joe muster vars fix --yes --flake "$work/wrong"
  )
}
last_operator() { refuses_and_leaves "joe is the only operator who reads" as joe muster vars fix --remove-user joe --yes --flake "$work/wrong"; }
second_key() {
  refuses_and_leaves "the operator joe has another key already" as other muster vars keygen --user joe --flake "$work/wrong"
  [ ! -e "$work/home/other/.config/sops" ] || { echo "a key was made all the same" && return 1; }
}
foreign_store() {
  new_fleet stranger
  echo '"password-store"' > "$work/stranger/clan.nix"
  git -C "$work/stranger" add -A
  refuses "keeps its secrets with 'password-store'" as joe muster vars list --flake "$work/stranger"
}
foreign_journal() {
  mkdir "$work/wrong/.muster-vars"
  echo '{"version": 2, "steps": []}' > "$work/wrong/.muster-vars/journal.json"
  refuses "was written by another version of muster" as joe muster vars fix --yes --flake "$work/wrong"
  refuses "was interrupted, and is half done" as joe muster update tin --yes --flake "path:$work/wrong"
  rm -r "$work/wrong/.muster-vars"
}
not_enrolled() {
  as joe muster machines add lead --class nixos > /dev/null 2>&1
  refuses "lead has not enrolled yet" as joe muster machines accept lead --yes
  refuses "there is no machine gold" as joe muster machines accept gold --yes
}
