#!/bin/sh
# Makes the data folder at the first start, then becomes the server.
#
# POSTGRES_USER              the only user, who owns the databases
# POSTGRES_DATABASES         their names, with spaces between; made at the first start only
# POSTGRES_PASSWORD_FILE     a file whose first line is the password
# Arguments are the server's (`-c name=value`).
set -eu

root=/var/lib/postgresql
version=15
data=$root/$version/data
unfinished=$root/$version/unfinished

refuse() {
    printf 'start-postgres: %s\n' "$*" >&2
    exit 1
}

for name in "$POSTGRES_USER" $POSTGRES_DATABASES; do
    case $name in
        '' | [!a-z_]* | *[!a-z0-9_]*) refuse "a name may have a-z, 0-9 and _, and '$name' has others." ;;
        postgres | template0 | template1) refuse "the name '$name' is PostgreSQL's own." ;;
    esac
done

if [ "$(id -u)" = 0 ]; then
    refuse "it runs as the image's user postgres, never as root."
fi
if ! [ -w "$root" ]; then
    refuse "$root belongs to user $(stat -c %u "$root"), and this one ($(id -u)) cannot write there: give the volume to $(id -u):$(id -g)."
fi
for other in "$root"/*/data/PG_VERSION "$root"/PG_VERSION "$root"/data/PG_VERSION; do
    if [ -e "$other" ] && [ "$other" != "$data/PG_VERSION" ]; then
        refuse "$(dirname "$other") has data of PostgreSQL $(cat "$other"), and this is $version: dump it there with pg_dumpall and restore it here."
    fi
done

if ! [ -e "$data" ]; then
    if ! [ -r "$POSTGRES_PASSWORD_FILE" ]; then
        refuse "the password's file $POSTGRES_PASSWORD_FILE is not there, or user $(id -u) may not read it."
    fi
    if [ -z "$(head -n 1 "$POSTGRES_PASSWORD_FILE")" ]; then
        refuse "the first line of $POSTGRES_PASSWORD_FILE is empty: there is no server without a password."
    fi
    # Under another name until it is whole: what a crash leaves behind is not taken for data.
    rm -rf "$unfinished"
    mkdir -p "$root/$version"
    initdb --pgdata="$unfinished" --username="$POSTGRES_USER" \
        --pwfile="$POSTGRES_PASSWORD_FILE" \
        --auth-local=scram-sha-256 --auth-host=scram-sha-256 \
        --encoding=UTF8 --locale=C.UTF-8 --data-checksums --no-instructions
    # Only from networks that this container is in.
    echo 'host all all samenet scram-sha-256' >>"$unfinished/pg_hba.conf"
    for database in $POSTGRES_DATABASES; do
        echo "CREATE DATABASE \"$database\";"
    done | postgres --single -D "$unfinished" -c exit_on_error=on template1
    sync
    mv "$unfinished" "$data"
elif ! [ -O "$data" ]; then
    refuse "$data belongs to user $(stat -c %u "$data"), not to $(id -u): it was copied as another user; give it back with chown -R $(id -u):$(id -g)."
fi

exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/tmp "$@"
