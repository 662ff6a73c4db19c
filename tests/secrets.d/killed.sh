# Runs that are killed, at any of their file operations. Read by tests/secrets.
# shellcheck shell=bash disable=SC2154,SC2034

operations=rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,symlink,symlinkat,fsync,fdatasync,ftruncate,flock

# Counts the calls by which COMMAND changes a file; then kills it at each of them, or at some.
killed_at_each() {
  local verb=$1 count step number=0 after call nth
  shift
  cd "$work/killed"
  git checkout -q HEAD -- .
  git clean -qfdx -e .muster-vars
  strace -o "$work/trace" -e trace=$operations "$@" > "$work/said" 2>&1 || { cat "$work/said" && return 1; }
  # strace counts each kind of call separately: the third rename, not the hundredth call.
  sed -nE "s/^($(tr , '|' <<< $operations))\(.*/\1/p" "$work/trace" | awk '{ print $1, ++seen[$1] }' > "$work/calls"
  count=$(wc -l < "$work/calls")
  [ "$count" -gt 20 ] || { echo "only $count operations" && return 1; }
  after=$(tree_of . | sed 's/ .*//')
  step=$((thorough_step > 0 ? thorough_step : (count + kills - 1) / kills))
  local at untouched=0 begun=0
  for ((at = 1; at <= count; at += step)); do
    git checkout -q HEAD -- .
    git clean -qfdx
    local before=''
    before=$(tree_of .)
    read -r call nth < <(sed -n "${at}p" "$work/calls")
    # In a separate shell, which reports the kill instead of this one.
    if (strace -o /dev/null -e trace="$call" -e inject="$call:signal=KILL:when=$nth" "$@" > /dev/null) 2> /dev/null; then
      echo "$verb was not killed at $at" && return 1
    fi
    number=$((number + 1))
    if [ -e .muster-vars/journal.json ]; then
      begun=$((begun + 1))
      as joe muster vars check --flake . > "$work/said" 2>&1 && { echo "an interrupted $verb is not told of" && return 1; }
      contains "$(cat "$work/said")" "muster vars fix\` finishes it"
    elif [ "$(tree_of .)" = "$before" ]; then
      untouched=$((untouched + 1))
    elif [ "$(tree_of . | sed 's/ .*//')" != "$after" ]; then
      echo "killed at $at, $verb is neither as it was nor finished:"
      diff <(echo "$before") <(tree_of .)
      return 1
    fi
    # A second run completes it.
    "$@" > "$work/said" 2>&1 || { echo "the second $verb failed after $at:" && cat "$work/said" && return 1; }
    same "$(tree_of . | sed 's/ .*//')" "$after"
    [ ! -e .muster-vars ] || { echo "something is left behind" && return 1; }
    same "$(in_memory)" ""
    local secret
    for secret in $(secrets_of .); do
      reads "$work/home/joe/.config/sops/age/keys.txt" "$secret" > /dev/null || { echo "$secret is damaged after $at" && return 1; }
    done
  done
  echo "$verb: killed at $number of $count operations: $untouched times as it was, $begun times begun"
  say_numbers="$verb at $number of $count operations"
  echo "$say_numbers" >> "$work/numbers"
}
if [ -n "$thorough" ]; then thorough_step=1; else thorough_step=0; fi
# How many of the operations a short run tries.
kills=5
for_kills() {
  new_fleet killed
  cd "$work/killed"
  as joe muster vars keygen --flake "$work/killed" > /dev/null
  commit .
}
generate_killed() { for_kills && killed_at_each generate "${joe_runs[@]}" muster vars generate --yes --answers "$work/answers" --flake "$work/killed"; }
accept_killed() {
  cd "$work/killed"
  git checkout -q HEAD -- .
  git clean -qfdx
  as joe make_all killed
  commit .
  killed_at_each accept "${joe_runs[@]}" muster machines accept tin --yes --flake "$work/killed"
}
fix_killed() {
  cd "$work/killed"
  git checkout -q HEAD -- .
  git clean -qfdx
  as eve muster vars keygen --flake "$work/killed" > /dev/null
  commit .
  killed_at_each fix "${joe_runs[@]}" muster vars fix --add-user eve --yes --flake "$work/killed"
}
# sops itself may be killed too, in the middle of writing a file.
sops_killed() {
  cd "$work/killed"
  git checkout -q HEAD -- .
  git clean -qfdx
  mkdir -p "$work/killing"
  # shellcheck disable=SC2016
  printf '#!/bin/sh\ncase "$*" in *updatekeys*) for file; do :; done; : > "$file"; kill -9 $$ ;; esac\nexec %s "$@"\n' "$real_sops" > "$work/killing/sops"
  chmod +x "$work/killing/sops"
  local before
  before=$(tree_of .)
  PATH=$work/killing:$PATH refuses "was ended by a signal" as joe muster vars fix --add-user eve --yes --flake "$work/killed"
  same "$(tree_of .)" "$before"
  as joe muster vars fix --add-user eve --yes --flake "$work/killed" > /dev/null
}
what_a_killed_script_left_goes() {
  cd "$work/wrong"
  extra wrong 'x.files.f = { }; x.script = "echo planted > $out/f; sleep 1000";'
  "${joe_runs[@]}" muster vars generate tin --yes --flake "$work/wrong" > /dev/null 2>&1 &
  local pid=$!
  written() { find /dev/shm -path '*muster-vars-*/out/f' | grep -q .; }
  wait_for "the script's file" 60 written
  kill -9 $pid
  wait $pid || true
  [ -n "$(in_memory)" ]
  script_gone() { ! pgrep -f 'sleep 1000' -s 0 > /dev/null; }
  extra wrong 'x.files.f = { }; x.script = "echo x > $out/f";'
  generates tin > /dev/null
  same "$(in_memory)" ""
  extra wrong ''
  rm -r vars/per-machine/*/x
  git add -A
  # Ctrl-C removes it at once.
  extra wrong 'x.files.f = { }; x.script = "echo planted > $out/f; sleep 1000";'
  "${joe_runs[@]}" muster vars generate tin --yes --flake "$work/wrong" > /dev/null 2> "$work/error" &
  pid=$!
  wait_for "the script's file" 60 written
  kill -INT $pid
  fails wait $pid
  contains "$(cat "$work/error")" "interrupted; nothing was changed"
  same "$(in_memory)" ""
  extra wrong ''
  git add -A
}
