# A PostgreSQL of the tests' own, and a pgbouncer before it: in a temporary folder, on free ports, as a user who is not
# root. Needs tests/lib.sh.
# shellcheck shell=bash disable=SC2154

postgres_folder='' postgres_pid='' pooler_pid='' postgres_port='' pooler_port=''

# The newest installed one; on Debian it is installed if it is missing.
need_postgres() {
  postgres_bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
  if [ ! -x "$postgres_bin/initdb" ] && has initdb; then postgres_bin=$(dirname "$(command -v initdb)"); fi
  if [ ! -x "$postgres_bin/initdb" ]; then
    debian_install postgresql
    postgres_bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
  fi
}
need_pgbouncer() { [ -x /usr/sbin/pgbouncer ] || has pgbouncer || debian_install pgbouncer; }

# Replaces the shell by a command as a user who is not root: both programs refuse root.
as_nobody() {
  cd /
  [ "$(id -u)" = 0 ] || exec "$@"
  exec setpriv --reuid=nobody --regid=nogroup --clear-groups "$@"
}

port_is_free() { ! (exec 3<> "/dev/tcp/127.0.0.1/$1") 2> /dev/null; }
some_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    port_is_free "$port" && echo "$port" && return
  done
}

# Sets postgres_port. Everything is durable, as where it is used.
start_postgres() {
  need_postgres
  postgres_folder=$(mktemp -d "${TMPDIR:-/tmp}/muster-postgres.XXXXXX")
  chmod 755 "$postgres_folder"
  mkdir "$postgres_folder/data"
  [ "$(id -u)" != 0 ] || chown nobody "$postgres_folder/data"
  (as_nobody "$postgres_bin/initdb" -D "$postgres_folder/data" -U muster -A trust -E UTF8 --locale=C) \
    > "$postgres_folder/initdb.log" 2>&1 || die "initdb failed: $(tail -n 3 "$postgres_folder/initdb.log")"
  postgres_port=$(some_port)
  (as_nobody "$postgres_bin/postgres" -D "$postgres_folder/data" -p "$postgres_port" -c listen_addresses=127.0.0.1 \
    -c unix_socket_directories= -c max_connections=400 -c fsync=on -c synchronous_commit=on) \
    > "$postgres_folder/postgres.log" 2>&1 &
  postgres_pid=$!
  wait_for "The start of PostgreSQL ($postgres_folder/postgres.log)" 60 \
    "$postgres_bin/pg_isready" -q -h 127.0.0.1 -p "$postgres_port" -U muster -d postgres
  # Functions of SQLite that the tests' own queries use.
  postgres_sql postgres 'CREATE DATABASE muster_template'
  postgres_sql muster_template "
    CREATE FUNCTION hex(bytea) RETURNS text LANGUAGE sql IMMUTABLE AS \$\$ SELECT upper(encode(\$1, 'hex')) \$\$;
    CREATE FUNCTION joined(text, anyelement) RETURNS text LANGUAGE sql AS
      \$\$ SELECT coalesce(\$1 || ',', '') || \$2::text \$\$;
    CREATE FUNCTION joined(text, text, text) RETURNS text LANGUAGE sql AS
      \$\$ SELECT coalesce(\$1 || \$3, '') || \$2 \$\$;
    CREATE AGGREGATE group_concat(anyelement) (sfunc = joined, stype = text);
    CREATE AGGREGATE group_concat(text, text) (sfunc = joined, stype = text);"
  # For the explorer's sequences of decisions.
  local seed
  for seed in 1 2 3 4 5 6 7 8; do postgres_sql postgres "CREATE DATABASE explorer_$seed"; done
}
postgres_sql() {
  "$postgres_bin/psql" -q -X -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$postgres_port" -U muster -d "$1" -c "$2" ||
    die "PostgreSQL refused a statement of the tests."
}

# Sets pooler_port.
start_pooler() {
  local program
  need_pgbouncer
  program=$(command -v pgbouncer || echo /usr/sbin/pgbouncer)
  pooler_port=$(some_port)
  echo '"muster" ""' > "$postgres_folder/users"
  cat > "$postgres_folder/pgbouncer.ini" << TEXT
[databases]
* = host=127.0.0.1 port=$postgres_port
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = $pooler_port
unix_socket_dir =
auth_type = trust
auth_file = $postgres_folder/users
pool_mode = transaction
default_pool_size = 4
max_client_conn = 2000
ignore_startup_parameters = extra_float_digits
TEXT
  (as_nobody "$program" "$postgres_folder/pgbouncer.ini") > "$postgres_folder/pgbouncer.log" 2>&1 &
  pooler_pid=$!
  wait_for "The start of pgbouncer ($postgres_folder/pgbouncer.log)" 30 \
    "$postgres_bin/psql" -X -h 127.0.0.1 -p "$pooler_port" -U muster -d postgres -c 'SELECT 1'
}

end_postgres() {
  [ -z "$pooler_pid" ] || end_process "$pooler_pid"
  # A fast shutdown; it does not wait for clients.
  [ -z "$postgres_pid" ] || { kill -INT "$postgres_pid" 2> /dev/null && wait "$postgres_pid" 2> /dev/null; } || true
  [ -z "$postgres_folder" ] || rm -rf "$postgres_folder"
  postgres_folder='' postgres_pid='' pooler_pid=''
}
