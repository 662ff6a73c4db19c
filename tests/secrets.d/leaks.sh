# Nothing in the clear except where it belongs. Read by tests/secrets.
# shellcheck shell=bash disable=SC2154,SC2034

# Searches the arguments and environment of every process while a command runs.
watch_processes() {
  local pid=$1
  # In a file, so that the search does not find itself.
  printf 'planted-\nAGE-SECRET-KEY\n' > "$work/patterns"
  while kill -0 "$pid" 2> /dev/null; do
    cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2> /dev/null | tr '\0' '\n' | grep -F -f "$work/patterns" || true
  done
}
nothing_leaks() {
  new_fleet leak
  cd "$work/leak"
  extra leak 'x.files.f = { }; x.script = "echo planted-by-script > $out/f; echo planted-on-stderr >&2";
    bad.files.f = { }; bad.dependencies = [ "asked" ]; bad.script = "set -x; cat $in/asked/word; cat $in/asked/word >&2; exit 1";'
  echo '{"asked": {"word": "planted-by-answer", "lines": "planted-line\nmore\n"}}' > "$work/planted"
  printf '#!/bin/sh\nexec "%s" "$@"\n' "$real_sops" > "$work/slow-sops" && chmod +x "$work/slow-sops"
  everything() {
    as joe muster vars keygen --flake .
    git add -A
    as joe muster vars generate --yes --flake . --answers "$work/planted" --generator asked --generator x --generator token --generator cert
    git add -A
    printf 'planted-by-set' | as joe muster vars set tin token/key --flake .
    as joe muster machines accept tin --yes --flake .
    as joe muster vars fix --yes --flake .
    as joe muster vars list --flake .
    as joe muster vars list --flake . --json
    fails as joe muster vars check --flake .
    # The failing one is last, and prints nothing of its input.
    fails as joe muster vars generate --yes --flake . --generator bad
    as joe muster machines list --flake .
    commit .
  }
  everything > "$work/leak.log" 2>&1 &
  local pid=$!
  watch_processes $pid > "$work/processes"
  wait $pid || { cat "$work/leak.log" && return 1; }
  # The search does find what it looks for: a program with a secret as an argument.
  sleep 2 planted-argument 2> /dev/null &
  (exec -a planted-name sleep 1) &
  watch_processes $! > "$work/control"
  contains "$(cat "$work/control")" planted-name
  same "$(grep -v planted-name "$work/processes" || true)" ""
  same "$(as joe muster vars get tin token/key --flake .)" planted-by-set
  same "$(as joe muster vars get tin asked/word --flake .)" planted-by-answer
  same "$(as joe muster vars get tin x/f --flake .)" planted-by-script
  # Only the flake's own texts name these two.
  local found
  found=$(grep -rlaE 'planted-(by-answer|line|by-set)' "$work/leak" "$work/leak.log" "$work/operator" "$work/config" "$work/controller.log" "$work/home" "$work/tin" "$work/tin.log" /tmp/sops* /tmp/.tmp* 2> /dev/null || true)
  same "$found" ""
  same "$(grep -cE 'planted-(on-stderr|by-script)' "$work/leak.log" || true)" 0
  found=$(grep -rlaE 'AGE-SECRET-KEY-1[A-Z0-9]{20}' "$work/leak" "$work/leak.log" "$work/operator" "$work/config" "$work/controller.log" "$work/tin.log" 2> /dev/null || true)
  same "$found" ""
  if [ -n "${NIX_REMOTE:-}" ]; then
    same "$(grep -rlaE 'planted-(by-answer|line|by-set)' "$work/operator/nix/store" 2> /dev/null || true)" ""
  fi
  same "$(in_memory)" ""
  # An encrypted file has only its recipients in the clear.
  git -C "$work/leak" log -p > "$work/history"
  lacks 'planted-(by-answer|line|by-set)' "$work/history"
}
no_core_dumps() {
  cd "$work/wrong"
  extra wrong 'x.files.f.secret = false; x.script = "ulimit -c > $out/f";'
  (ulimit -c unlimited && generates tin > /dev/null)
  same "$(cat vars/per-machine/tin/x/f/value)" 0
  extra wrong ''
  rm -r vars/per-machine/*/x
  git add -A
}
