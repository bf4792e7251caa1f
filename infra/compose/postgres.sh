#!/bin/sh
# Start PostgreSQL on /srv/postgres. In an empty volume, first make the databases of Prefect and MLflow.
set -eu

bin=$(echo /usr/lib/postgresql/*/bin)
version=$(basename "$(dirname "$bin")")
data=/srv/postgres/data

if [ ! -s "$data/PG_VERSION" ]; then
  # In a folder aside, so that the next start begins anew if this one is cut off.
  new=$data.new
  rm -rf "$new"
  echo "$POSTGRES_PASSWORD" > /tmp/password
  "$bin/initdb" --pgdata "$new" --username fedbench --pwfile /tmp/password --auth-local peer \
    --auth-host scram-sha-256 --encoding UTF8 --locale C.UTF-8
  rm /tmp/password
  echo "host all all all scram-sha-256" >> "$new/pg_hba.conf"
  "$bin/pg_ctl" start --pgdata "$new" --wait --options "-c listen_addresses='' -c unix_socket_directories=/tmp"
  "$bin/psql" --host /tmp --username fedbench --dbname postgres --set ON_ERROR_STOP=1 --quiet --no-psqlrc \
    --file /etc/fedbench/databases.sql
  "$bin/pg_ctl" stop --pgdata "$new" --wait --mode fast
  mv "$new" "$data"
fi

found=$(cat "$data/PG_VERSION")
if [ "$found" != "$version" ]; then
  echo "postgres: the data in the volume are of PostgreSQL $found, but this image has PostgreSQL $version;" \
    "build the image on a base with PostgreSQL $found, or dump and restore the data" >&2
  exit 1
fi

exec "$bin/postgres" -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp
