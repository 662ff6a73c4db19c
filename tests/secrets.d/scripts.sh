# Generators' scripts: their sandbox, their questions, and when they run again. Read by tests/secrets.
# shellcheck shell=bash disable=SC2154,SC2034

in_a_sandbox() {
  cd "$work/wrong"
  extra wrong "x.files.f.secret = false; x.script = ''
    {
      cat /etc/shadow $work/answers 2>&1 || true
      ls / $work 2>&1 || true
      wget -T 2 -q -O - http://127.0.0.1:$(sed -n 's/.*127.0.0.1:\([0-9]*\).*/\1/p' "$work/config/muster.toml" | head -n 1)/ 2>&1 && echo network || true
      echo \"user \$UID\"
      export -p | sed 's/^/has /' 2>/dev/null || export -p
    } > \$out/f
    for number in 1 2 3; do true; done; cat <(echo substituted) >> \$out/f
  '';"
  generates tin > /dev/null
  local said
  said=$(cat vars/per-machine/tin/x/f/value)
  echo "$said"
  contains "$said" "can't open '/etc/shadow'"
  contains "$said" "can't open '$work/answers'"
  contains "$said" "user 1000"
  contains "$said" substituted
  lacks '^network|joe|SOPS|swordfish' <<< "$said"
  same "$(sed -n 's/^declare -x \([A-Za-z_]*\).*/\1/p' <<< "$said" | LC_ALL=C sort | tr '\n' ' ')" "HOME LANG OLDPWD PATH PWD SHLVL TMPDIR in out prompts "
  extra wrong ''
  rm -r vars/per-machine/*/x
  git add -A
}
without_a_sandbox() {
  cd "$work/wrong"
  extra wrong 'x.files.f.secret = false; x.script = "cat /etc/passwd > $out/f";'
  # Only the sandbox shows a store in a folder as /nix/store; here a namespace does it.
  outside() {
    if own_stores; then
      unshare -m sh -c 'mount --bind "$0" /nix && exec env -u NIX_REMOTE "$@"' "$work/operator/nix" "$@"
    else
      "$@"
    fi
  }
  outside "${joe_runs[@]}" muster vars generate --yes tin --no-sandbox --flake "$work/wrong" > /dev/null 2> "$work/error"
  contains "$(cat vars/per-machine/tin/x/f/value)" root:
  contains "$(cat "$work/error")" "they can read your files and your keys, and use the network"
  extra wrong ''
  rm -r vars/per-machine/*/x
  git add -A
}
# A person types the answers; hidden ones never appear on the screen.
asked_at_a_terminal() {
  cd "$work/wrong"
  extra wrong 'x.files.f = { }; x.prompts.secret = { type = "hidden"; persist = true; }; x.prompts.word = { }; x.prompts.many.type = "multiline-hidden"; x.script = "cat $prompts/secret $prompts/word $prompts/many > $out/f";'
  LOGNAME=joe HOME=$work/home/joe XDG_CONFIG_HOME=$work/home/joe/.config python3 - "$work/wrong" > "$work/screen" <<'TEXT'
import os, pty, select, sys, time
answers = [(b"[y/N] ", b"y\n"), (b"Ctrl-D", b"hidden-one\rhidden-two\r\x04"), (b"again", b"hidden-one\rhidden-two\r\x04"),
           (b": secret:", b"hidden-planted\r"), (b"again", b"hidden-other\r"), (b": secret:", b"hidden-planted\r"),
           (b"again", b"hidden-planted\r"), (b": word:", b"visible\n")]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp("muster", ["muster", "vars", "generate", "tin", "--flake", sys.argv[1]])
seen, end = b"", time.monotonic() + 120
while time.monotonic() < end:
    if answers and answers[0][0] in seen.rpartition(b"\x00")[2]:
        time.sleep(0.2)
        os.write(terminal, answers.pop(0)[1])
        seen += b"\x00"
    if select.select([terminal], [], [], 0.1)[0]:
        try:
            more = os.read(terminal, 4096)
        except OSError:
            break
        if not more:
            break
        seen += more
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.stdout.buffer.write(seen)
sys.exit(status or len(answers))
TEXT
  contains "$(cat "$work/screen")" visible
  contains "$(cat "$work/screen")" "The two differ."
  lacks hidden- "$work/screen"
  same "$(as joe muster vars get tin x/secret --flake "$work/wrong")" hidden-planted
  contains "$(as joe muster vars get tin x/f --flake "$work/wrong")" hidden-two
  extra wrong ''
  rm -r vars/per-machine/*/x
  git add -A
}
made_again_only_when_told() {
  cd "$work/wrong"
  local key cert
  key=$(as joe muster vars get tin token/key --flake .) cert=$(cat vars/per-machine/tin/cert/cert/value)
  contains "$(generates --regenerate ca)" "cert for tin: made anew, for it is made from ca (shared)"
  [ "$(cat vars/per-machine/tin/cert/cert/value)" != "$cert" ]
  same "$(as joe muster vars get tin token/key --flake .)" "$key"
  # A new file in the flake does not change the existing ones.
  sed -i 's/    files.pub.secret = false;/    files.pub.secret = false;\n    files.more = { };/' generators.nix
  git add -A
  contains "$(generates 2>&1)" "token of tin is left as it is: there is key, pub and not more"
  same "$(as joe muster vars get tin token/key --flake .)" "$key"
  git checkout -q HEAD -- generators.nix
  sed -i 's/years = 10/years = 11/' generators.nix
  git add -A
  contains "$(generates 2>&1)" "ca (shared) is left as it is, though what it depends on has changed"
  fails as joe muster vars check --flake . > "$work/said"
  contains "$(cat "$work/said")" "--regenerate ca makes it anew"
  git checkout -q HEAD -- .
  git clean -qfd
  # What was in the clear and is now secret, and the other way round.
  sed -i 's/    files.pub.secret = false;/    files.pub = { };/' generators.nix
  git add -A
  fails as joe muster vars check --flake . > "$work/said"
  contains "$(cat "$work/said")" "is in the clear, and should be secret"
  generates tin --regenerate token > /dev/null
  [ ! -e vars/per-machine/tin/token/pub/value ]
  [ -f vars/per-machine/tin/token/pub/secret ]
  git checkout -q HEAD -- generators.nix
  git add -A
  generates tin --regenerate token > /dev/null
  same "$(ls vars/per-machine/tin/token/pub)" value
  git checkout -q HEAD -- .
  git clean -qfd
}
