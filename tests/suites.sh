# How tests/run counts its suites and reports them. Needs tests/lib.sh and `logs`, a folder.
# shellcheck shell=bash disable=SC2154
passed=0 failed=0 failures=()

# A suite that was not requested, or that needs something from outside this repository.
left_out() { say "${dim}$1: not run ($2)${plain}"; }
# A suite that should have run but could not. In CI (CI=true) it can, so there that is a failure.
not_run() {
  if [ "${CI:-}" = true ]; then
    failed=$((failed + 1)) failures+=("$1")
    printf 'FAILED: it did not run: %s\n' "$2" > "$(log_of "$1")"
    say "${red}FAILED${plain} $1: not run, and CI is where it should ($2)"
  else
    left_out "$1" "$2"
  fi
}
log_of() { printf '%s/%s.log' "$logs" "$(printf '%s' "$1" | tr -c 'a-z0-9' -)"; }

# A command that is one test.
check() {
  local name=$1 log start=$SECONDS
  log=$(log_of "$name")
  shift
  if "$@" > "$log" 2>&1; then
    passed=$((passed + 1))
    say "${green}ok${plain} $name ($((SECONDS - start)) s)"
  else
    failed=$((failed + 1)) failures+=("$name")
    say "${red}FAILED${plain} $name: $*"
    cat "$log" >&2
  fi
}

# A call of cargo test, which counts its tests itself.
cargo_tests() {
  local name=$1 log start=$SECONDS good bad status=0
  log=$(log_of "$name")
  shift
  cargo test --no-fail-fast "$@" > "$log" 2>&1 || status=$?
  good=$(sum 's/^test result: .* \([0-9]*\) passed;.*/\1/p' "$log")
  bad=$(sum 's/^test result: .* \([0-9]*\) failed;.*/\1/p' "$log")
  # A failure that no test reports (it did not compile, or a test program died) counts as one.
  if [ "$status" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
  if [ "$good" = 0 ] && [ "$bad" = 0 ]; then bad=1; fi
  passed=$((passed + good)) failed=$((failed + bad))
  if [ "$bad" = 0 ]; then
    say "${green}ok${plain} $name: $good tests ($((SECONDS - start)) s)"
  else
    failures+=("$name")
    say "${red}FAILED${plain} $name: $bad of $((good + bad)) tests ($((SECONDS - start)) s)"
    cat "$log" >&2
  fi
}
# A script that counts its tests itself, and prints the counts in its last line.
counted() {
  local name=$1 log start=$SECONDS good bad status=0
  log=$(log_of "$name")
  shift
  "$@" > "$log" 2>&1 || status=$?
  good=$(sum 's/^\([0-9]*\) passed, [0-9]* failed$/\1/p' "$log")
  bad=$(sum 's/^[0-9]* passed, \([0-9]*\) failed$/\1/p' "$log")
  # A script that ended before it counted has failed.
  if [ "$bad" = 0 ] && { [ "$status" != 0 ] || [ "$good" = 0 ]; }; then bad=1; fi
  passed=$((passed + good)) failed=$((failed + bad))
  if [ "$bad" = 0 ]; then
    say "${green}ok${plain} $name: $good tests ($((SECONDS - start)) s)"
  else
    failures+=("$name")
    say "${red}FAILED${plain} $name: $bad of $((good + bad)) tests ($((SECONDS - start)) s)"
    cat "$log" >&2
  fi
}
sum() { sed -n "$1" "$2" | awk '{ all += $1 } END { print all + 0 }'; }

# A command whose exit code 77 means that it tested nothing; its last line says why. Its findings are shown.
shown_check() {
  local name=$1 log start=$SECONDS status=0
  log=$(log_of "$name")
  shift
  "$@" > "$log" 2>&1 || status=$?
  case $status in
    0) passed=$((passed + 1)) && say "${green}ok${plain} $name ($((SECONDS - start)) s)" ;;
    77) not_run "$name" "$(grep '^not run' "$log" | tail -n 1 | sed 's/^not run: //')" ;;
    *)
      failed=$((failed + 1)) failures+=("$name")
      say "${red}FAILED${plain} $name: $*"
      cat "$log" >&2
      ;;
  esac
}
findings() { grep -E "$2" "$(log_of "$1")" | sed 's/^/  /' >&"$messages" || true; }

# The failures in short, and the line with the totals; its status is the run's.
summary() {
  local name log
  # CI shows only the beginning and end of a log, and failures are in the middle.
  for name in ${failures[@]+"${failures[@]}"}; do
    say ""
    say "${red}FAILED${plain} $name, in short:"
    log=$(log_of "$name")
    { grep -aE -A 60 '(^| )FAILED|panicked at|^error' "$log" || tail -n 50 "$log"; } | head -n 150 >&2 || true
  done
  say ""
  printf '%d passed, %d failed\n' "$passed" "$failed"
  [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
}
