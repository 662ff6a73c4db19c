# What tests/demo, tests/run and tests/bench share: messages, tools, and ending what was started.
# shellcheck shell=bash disable=SC2034

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Downloads survive between runs, outside the repository.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/muster-tests
target=${CARGO_TARGET_DIR:-$repository/target}

# Where messages for people go; --json moves them away from stdout.
messages=1
say() { printf '%s\n' "$*" >&"$messages"; }
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' blue=$'\e[34m' plain=$'\e[0m'
else
  bold='' dim='' green='' red='' blue='' plain=''
fi
die() {
  printf '%s%s%s\n' "$red" "$*" "$plain" >&2
  exit 1
}

has() { command -v "$1" > /dev/null 2>&1; }

# On Debian, as root, installs missing packages; elsewhere says what is needed.
apt_updated=
debian_install() {
  local package
  for package in "$@"; do
    if ! has apt-get; then
      die "This needs $package, and there is no apt-get: install it and run this again."
    fi
    if [ "$(id -u)" != 0 ]; then
      die "This needs the package $package: run \`sudo apt-get install --no-install-recommends $package\`, then this again."
    fi
    say "${dim}installing $package${plain}"
    if [ -z "$apt_updated" ]; then
      apt-get update -qq > /dev/null || die "apt-get update failed: check that this machine reaches its Debian mirror."
      apt_updated=yes
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$package" > /dev/null ||
      die "apt-get cannot install $package."
  done
}

need_rust() {
  has cargo || [ ! -x "$HOME/.cargo/bin/cargo" ] || PATH=$HOME/.cargo/bin:$PATH
  has cargo || die "This needs Rust: install it from https://rustup.rs, then run this again."
  has cc || [ "$(uname)" = Darwin ] || debian_install gcc libc6-dev
}

# A program that cargo installs, in exactly this version, under the cache folder.
cargo_tool() {
  PATH=$cache/cargo/bin:$PATH
  case $("$1" --version 2> /dev/null) in
    *"$2"*) ;;
    *)
      say "${dim}installing $1 $2${plain}"
      # Not into this project's target folder, which has other settings.
      (cd "$HOME" && CARGO_TARGET_DIR=$cache/cargo/target cargo install --quiet --locked --root "$cache/cargo" "$1@$2" >&2) ||
        die "cargo cannot install $1: its message is above."
      ;;
  esac
}

# schemathesis in exactly this version, with what signs requests; sets `schemathesis` to its folder.
need_schemathesis() {
  local version=4.32.5
  schemathesis=$cache/schemathesis
  has curl || debian_install curl
  case $("$schemathesis/bin/schemathesis" --version 2> /dev/null) in
    *"$version"*) return ;;
  esac
  # Debian's python3 has venv in a package of its own.
  if ! has python3 || { has apt-get && ! python3 -c 'import ensurepip' 2> /dev/null; }; then
    debian_install python3 python3-venv
  fi
  say "${dim}installing schemathesis $version${plain}"
  python3 -m venv "$schemathesis" && "$schemathesis/bin/pip" install --quiet "schemathesis==$version" pynacl==1.6.2 >&2 ||
    die "pip cannot install schemathesis: its message is above."
}

# Sets `promtool`. Debian has it in the package of the server, which would start as a service: it is unpacked here.
need_promtool() {
  promtool=$(type -P promtool || true)
  [ -z "$promtool" ] || return 0
  promtool=$cache/prometheus/usr/bin/promtool
  [ ! -x "$promtool" ] || return 0
  has apt-get || die "This needs promtool: install Prometheus and run this again."
  say "${dim}unpacking promtool${plain}"
  mkdir -p "$cache/prometheus"
  (cd "$cache/prometheus" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } &&
    dpkg-deb -x prometheus_*.deb . && rm -f prometheus_*.deb) > /dev/null 2>&1 ||
    die "promtool cannot be downloaded: install the package prometheus."
}

need_nix() {
  local folder
  for folder in /run/current-system/sw/bin /nix/var/nix/profiles/default/bin "$HOME/.nix-profile/bin"; do
    has nix || [ ! -x "$folder/nix" ] || PATH=$PATH:$folder
  done
  if ! has nix; then
    case $(uname) in
      Darwin) die "This needs Nix, and cannot install it on a Mac: see https://nixos.org/download, then run this again." ;;
      Linux) debian_install nix-bin ;;
      *) die "This needs Nix, which $(uname) does not have." ;;
    esac
  fi
  [ "$(uname)" = Linux ] || return 0
  need_static_shell
}

is_static() { ! LC_ALL=C ldd "$1" > /dev/null 2>&1; }

# A machine in a folder builds in a sandbox of its own store; its /bin/sh is one file without libraries.
need_static_shell() {
  local found
  for found in "${MUSTER_BUSYBOX:-}" /bin/busybox "$cache/busybox/bin/busybox"; do
    if [ -x "$found" ] && is_static "$found"; then
      export MUSTER_BUSYBOX=$found
      return
    fi
  done
  if has apt-get && [ ! -e /bin/busybox ]; then
    debian_install busybox-static
    export MUSTER_BUSYBOX=/bin/busybox
  elif has apt-get; then
    # The host has a busybox with shared libraries; it is left alone.
    mkdir -p "$cache/busybox"
    (cd "$cache/busybox" && apt-get download -qq busybox-static && dpkg-deb -x busybox-static_*.deb .) > /dev/null ||
      die "A static busybox cannot be downloaded: name one in MUSTER_BUSYBOX."
    export MUSTER_BUSYBOX=$cache/busybox/bin/busybox
  else
    say "${dim}building a static busybox with Nix${plain}"
    found=$(nix --extra-experimental-features 'nix-command flakes' build --no-link --json nixpkgs#pkgsStatic.busybox |
      sed -n 's|.*"out":"\([^"]*\)".*|\1/bin/busybox|p')
    [ -x "$found" ] || die "This needs a static busybox: name one in MUSTER_BUSYBOX."
    export MUSTER_BUSYBOX=$found
  fi
}

# Builds the programs; `profile` is dev or release.
build_programs() {
  local profile=${1:-dev} arguments=(--workspace --features muster-agent/stand-in)
  [ "$profile" = dev ] || arguments+=(--profile "$profile")
  say "${dim}cargo build ${arguments[*]}${plain}"
  (cd "$repository" && cargo build "${arguments[@]}" >&2) || die "The build failed; its message is above."
  case $profile in
    dev) bin=$target/debug ;;
    *) bin=$target/$profile ;;
  esac
}

# Serves a copy of the recorded fleet in a folder, on a port of its own: sets `url` and `server`. Its keys are
# known, and there is something to read. The second argument is added to controller.toml.
serve_recorded() {
  local work=$1 more=$2 port
  cp -R "$repository/tests/fixtures/0.1.0/." "$work"
  chmod -R u+w,go-rwx "$work"
  mkdir "$work/controller/data"
  mv "$work/controller/muster.db" "$work/controller/data/"
  port=$(free_port)
  url=http://127.0.0.1:$port
  {
    sed "s|^listen = .*|listen = \"127.0.0.1:$port\"|" "$work/controller/controller.toml"
    printf '%s\n' "$more"
  } > "$work/controller/changed.toml"
  "$bin/muster" serve --config "$work/controller/changed.toml" 2> "$work/log" &
  server=$!
  wait_for "the controller's start" 30 curl --silent --fail "$url/readyz"
}

# The Nix name of this host's architecture.
host_cpu() { uname -m | sed 's/arm64/aarch64/'; }

free_port() {
  # Chosen by the kernel, through a listener that ends at once.
  "$bin/muster-machine" free-port
}

# Whether machines can have Nix stores of their own. Otherwise (a Mac, a container without namespaces) they
# use the host's, and the flake names their folders.
own_stores() { "$bin/muster-machine" can-sandbox; }

# The operator's Nix: a store of its own, and nothing from the home folder. Takes the demo's folder.
operator_nix() {
  mkdir -p "$1/operator"
  export HOME=$1/operator XDG_CACHE_HOME=$1/operator/cache XDG_CONFIG_HOME=$1/operator/config
  export NIX_REMOTE="local?root=$1/operator"
  export NIX_CONFIG="experimental-features = nix-command flakes
substituters =
build-users-group =
flake-registry ="
}

# Copies the example flake into a folder, for the machines given as NAME=SYSTEM, and locks it.
copy_flake() {
  local work=$1 entry name root
  shift
  cp -R "$repository/tests/fixtures/fleet" "$work/flake"
  chmod -R u+w "$work/flake"
  mv "$work/flake/words" "$work/words"
  sed "s|path:./words|path:$work/words|" "$work/flake/flake.nix" > "$work/flake.nix"
  mv "$work/flake.nix" "$work/flake/flake.nix"
  {
    echo '{'
    for entry in "$@"; do
      name=${entry%%=*} root=
      own_stores || root=$work/$name
      echo "  $name = { system = \"${entry#*=}\"; root = \"$root\"; };"
    done
    echo '}'
  } > "$work/flake/machines.nix"
  nix flake lock "$work/flake" 2> "$work/lock.log" || die "Nix cannot lock the example flake: $(cat "$work/lock.log")"
}

# Waits until a command succeeds, for at most that many seconds.
wait_for() {
  local what=$1 seconds=$2 end=$((SECONDS + $2))
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || die "$what did not happen within $seconds seconds."
    sleep 0.1
  done
}

# Asks a process to end, waits, and then kills it.
end_process() {
  local pid=$1 tries=0
  kill "$pid" 2> /dev/null || return 0
  while kill -0 "$pid" 2> /dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || kill -9 "$pid" 2> /dev/null || true
    sleep 0.1
  done
}

# An S3 store of others: garage, which cargo builds once, in minutes. Sets `garage`.
garage_version=2.5.0
need_garage() {
  garage=$cache/garage/bin/garage
  case $("$garage" --version 2> /dev/null) in *"$garage_version"*) return 0 ;; esac
  need_rust
  say "${dim}building garage $garage_version, once${plain}"
  # Not into this project's target folder, which has other settings; nor as slowly as for those who ship it.
  (cd "$HOME" && CARGO_TARGET_DIR=$cache/garage/target CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_OPT_LEVEL=1 \
    CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 cargo install --quiet --locked --root "$cache/garage" \
    "garage@$garage_version" >&2) || die "cargo cannot install garage: its message is above."
  rm -rf "$cache/garage/target"
}
