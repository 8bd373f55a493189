#!/usr/bin/env bash
# Demonstrates KalamDB and leaves it running: starts the server, creates a table, watches it, inserts rows,
# shows them arriving, and prints how to connect. Ctrl-C stops the server. DEMO_EXIT=1 stops it after the
# demonstration.
#
# KALAMDB_BIN            the program (default: built with cargo)
# KALAMDB_DATA_DIR       where the data lives (default: ./kalamdb-data)
# KALAMDB_LISTEN         address (default: 127.0.0.1:8815)
# KALAMDB_ROOT_PASSWORD  root's password at the first start (default: a random one, kept in the data directory)
set -euo pipefail

cd "$(dirname "$0")/.."
export KALAMDB_DATA_DIR=${KALAMDB_DATA_DIR:-./kalamdb-data}
listen=${KALAMDB_LISTEN:-127.0.0.1:8815}

if [ -z "${KALAMDB_BIN:-}" ]; then
    cargo build --quiet --workspace --bin kalamdb --examples
    KALAMDB_BIN=${CARGO_TARGET_DIR:-target}/debug/kalamdb
fi

work=$(mktemp -d)
server=""
watch=""
finish() {
    # Both processes may have ended already.
    [ -z "$watch" ] || kill "$watch" 2>/dev/null || true
    if [ -n "$server" ] && kill "$server" 2>/dev/null; then
        wait "$server" || true
    fi
    rm -rf "$work"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# Waits until a line of the file matches; fails when the process that writes it ends first.
wait_for() { # FILE PATTERN PID
    until grep -q "$2" "$1" 2>/dev/null; do
        kill -0 "$3" 2>/dev/null || { grep -q "$2" "$1" 2>/dev/null && return; cat "$work/server.err" >&2; return 1; }
        sleep 0.05
    done
}

say "Starting the server (data in $KALAMDB_DATA_DIR)"
"$KALAMDB_BIN" serve --listen "$listen" >"$work/server.out" 2>"$work/server.err" &
server=$!
wait_for "$work/server.out" '^listening on ' "$server"
address=$(sed -n 's/^listening on //p' "$work/server.out")
export KALAMDB_URL=grpc://$address
grep -h '^created user root' "$work/server.err" || true
echo "listening on $address"

# The data directory keeps a generated password. It does not keep a chosen one, which the caller knows.
if [ -z "${KALAMDB_PASSWORD:-}" ]; then
    KALAMDB_PASSWORD=$(cat "$KALAMDB_DATA_DIR/root-password" 2>/dev/null || echo "${KALAMDB_ROOT_PASSWORD:-}")
    [ -n "$KALAMDB_PASSWORD" ] || { echo "set KALAMDB_PASSWORD to root's password" >&2; exit 1; }
fi
export KALAMDB_PASSWORD

sql() {
    printf '\033[36m%s\033[0m\n' "$1"
    "$KALAMDB_BIN" sql --format table -c "$1"
}

say "A namespace and a table"
sql "CREATE NAMESPACE IF NOT EXISTS demo"
sql "CREATE TABLE IF NOT EXISTS demo.messages (
    id      BIGINT NOT NULL PRIMARY KEY,
    room    TEXT NOT NULL,
    body    TEXT NOT NULL,
    sent_at TIMESTAMP DEFAULT NOW()
)"
sql "DELETE FROM demo.messages"

query="SELECT id, body FROM demo.messages WHERE room = 'lobby'"
say "A live query: $query"
"$KALAMDB_BIN" watch "$query" --format csv --limit 4 >"$work/watch.out" 2>"$work/watch.err" &
watch=$!
# The header is printed once the subscription has started.
wait_for "$work/watch.out" '^_op,' "$watch"

say "Rows are written"
sql "INSERT INTO demo.messages (id, room, body) VALUES (1, 'lobby', 'hello'), (2, 'kitchen', 'not for the lobby')"
sql "INSERT INTO demo.messages (id, room, body) VALUES (3, 'lobby', 'how are you?')"
sql "UPDATE demo.messages SET body = 'hello, world' WHERE id = 1"
sql "UPDATE demo.messages SET room = 'kitchen' WHERE id = 3"

wait "$watch"
watch=""
say "What the live query received (a row that leaves the filter is a delete)"
cat "$work/watch.out"

say "The table"
sql "SELECT * FROM demo.messages ORDER BY id"

password=$KALAMDB_PASSWORD
in_url=$password
case "$password" in *[!A-Za-z0-9]*) in_url=$(printf '%s' "$password" | od -An -v -tx1 | tr -d ' \n' | sed 's/../%&/g') ;; esac
host=${address%:*}
port=${address##*:}
say "Connect"
cat <<TEXT
  DBeaver / JDBC   jdbc:arrow-flight-sql://$host:$port?useEncryption=false&user=root&password=$in_url
                   (driver org.apache.arrow:flight-sql-jdbc-driver; Java needs --add-opens=java.base/java.nio=ALL-UNNAMED)
  pandas / ADBC    python3 -m venv venv && venv/bin/pip install adbc-driver-flightsql pandas pyarrow && venv/bin/python
                   import adbc_driver_flightsql.dbapi as flightsql
                   db = flightsql.connect("grpc://$address", db_kwargs={"username": "root", "password": "$password"}, autocommit=True)
                   cursor = db.cursor(); cursor.execute("SELECT * FROM demo.messages"); cursor.fetch_df()
  gRPC live query  proto/kalamdb/live/v1/live.proto, service kalamdb.live.v1.LiveQuery on $address
                   metadata: authorization: Basic $(printf 'root:%s' "$password" | base64 -w0)
  this program     export KALAMDB_PASSWORD='$password' KALAMDB_URL=grpc://$address PATH="$(dirname "$KALAMDB_BIN"):\$PATH"
                   kalamdb sql
                   kalamdb watch "SELECT * FROM demo.messages"
TEXT

if [ "${DEMO_EXIT:-}" = 1 ]; then
    kill "$server"
    wait "$server"
    server=""
    exit 0
fi
say "The server runs until Ctrl-C"
tail -n +1 -f "$work/server.err" --pid="$server" >&2 &
wait "$server"
