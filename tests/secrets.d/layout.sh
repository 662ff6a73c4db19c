# The layout on disk, in our flakes, in Clan's, and by the real module. Read by tests/secrets.
# shellcheck shell=bash disable=SC2154,SC2034

layout_to_the_byte() {
  new_fleet layout
  cd "$work/layout"
  mkdir -p sops/machines/tin
  printf '[\n  {\n    "publickey": "%s",\n    "type": "age"\n  }\n]' "$(age-keygen -y "$(state tin)")" > sops/machines/tin/key.json
  as joe muster vars keygen --flake . > /dev/null
  git add -A
  as joe make_all layout
  {
    find vars sops -type d -printf 'folder %m %p\n'
    find vars sops -type l -printf 'link %p -> %l\n'
    find vars sops -type f -printf 'file %m %p\n'
  } | LC_ALL=C sort > "$work/found"
  diff -u "$repository/tests/fixtures/secrets/expected/layout" "$work/found"
  same "$(cat vars/shared/ca/.validation-hash)" "$(printf '{"subject":"fleet","years":10}' | sha256sum | cut -d ' ' -f 1)"
  # A key file, and the shape of an encrypted file, except for the key and random parts.
  same "$(sed 's/age1[a-z0-9]*/AGE/' sops/users/joe/key.json | od -c)" "$(printf '[\n  {\n    "publickey": "AGE",\n    "type": "age"\n  }\n]' | od -c)"
  local secret=vars/per-machine/tin/token/key/secret
  same "$(jq -c '[keys, (.sops | keys), (.sops.age | map(keys))]' $secret)" '[["data","sops"],["age","lastmodified","mac","version"],[["enc","recipient"],["enc","recipient"]]]'
  same "$(jq -r '.sops.age[].recipient' $secret | LC_ALL=C sort)" "$(printf '%s\n%s\n' "$(age-keygen -y "$(state tin)")" "$(age-keygen -y "$work/home/joe/.config/sops/age/keys.txt")" | LC_ALL=C sort)"
  same "$(tail -c 1 $secret | od -An -c | tr -d ' ')" '\n'
}
# Clan's names and places; a machine whose private key Clan kept in the repository gets its own.
in_a_clan() {
  new_fleet clan
  cd "$work/clan"
  echo '"sops"' > clan.nix
  git add -A
  as joe muster vars keygen --flake . > /dev/null
  git add -A
  as joe make_all clan
  mkdir -p sops/secrets/tin-age.key/users
  ln -s ../../../users/joe sops/secrets/tin-age.key/users/joe
  cp vars/shared/ca/key/secret sops/secrets/tin-age.key/secret
  commit .
  local said
  said=$(as joe muster machines accept tin --yes --flake .)
  contains "$said" "D sops/secrets/tin-age.key/"
  [ ! -e sops/secrets/tin-age.key ]
  reads "$(state tin)" vars/per-machine/tin/token/key > /dev/null
  as joe muster vars check --flake .
}
by_the_real_module() {
  new_fleet module
  cd "$work/module"
  mkdir lib
  cp -R "$nixpkgs_lib/lib" lib/
  cp -R "$repository/nix/modules" modules
  chmod -R u+w .
  git add -A
  as joe muster vars keygen --flake . > /dev/null
  git add -A
  as joe make_all module
  contains "$(as joe muster vars check --flake . 2>&1)" "as they should be"
  same "$(tree_of . | sed 's/ .*//')" "$(cd "$work/layout" && tree_of . | sed 's/ .*//' | grep -v machines/tin)"
  # Public values reach Nix, and paths of secrets.
  git add -A
  same "$(nix eval --raw .#nixosConfigurations.tin.config.muster.vars.generators.token.files.pub.value)" "$(cat vars/per-machine/tin/token/pub/value)"
  same "$(nix eval --raw .#darwinConfigurations.iron.config.muster.vars.generators.token.files.key.path)" /run/secrets/vars/per-machine/iron/token/key
}
