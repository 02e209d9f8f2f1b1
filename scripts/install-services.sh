#!/bin/sh
# What the tests need besides Python: Docker with compose, gVisor and a sandbox image, PostgreSQL, Chromium, promtool.
# On Debian as root it installs and starts them; elsewhere it says what is missing, and the tests say what they skip.
# `install-services.sh stop` stops a dockerd that this script started.
set -eu

state=.cache/services
log=$state/dockerd.log
config=$PWD/$state/daemon.json

docker_answers() {
    docker version >/dev/null 2>&1
}

knows_gvisor() {
    docker info --format '{{json .Runtimes}}' | grep -q '"runsc":'
}

# The configuration of a dockerd that this script starts: this machine's own, with gVisor as a runtime. Its platform ptrace needs no
# KVM, and is all that its old versions have besides.
write_config() {
    python3 - "$config" <<'END'
import json, pathlib, sys

usual = pathlib.Path("/etc/docker/daemon.json")
config = json.loads(usual.read_text()) if usual.exists() else {}
gvisor = {"path": "/usr/bin/runsc", "runtimeArgs": ["--platform=ptrace", "--network=none"]}
config.setdefault("runtimes", {}).setdefault("runsc", gvisor)
pathlib.Path(sys.argv[1]).write_text(json.dumps(config, indent=4) + "\n")
END
}

is_ours() {
    [ -f "$state/dockerd.pid" ] && tr '\0' ' ' <"/proc/$(cat "$state/dockerd.pid")/cmdline" 2>/dev/null | grep -qF -- "--config-file $config"
}

if [ "${1:-}" = stop ]; then
    if [ -f "$state/dockerd.pid" ]; then
        kill "$(cat "$state/dockerd.pid")" 2>/dev/null || true
        rm -f "$state/dockerd.pid"
        echo "stopped dockerd"
    fi
    exit 0
fi

missing=
command -v docker >/dev/null && command -v dockerd >/dev/null || missing="$missing docker.io"
command -v iptables >/dev/null || missing="$missing iptables"
command -v mmdebstrap >/dev/null || missing="$missing mmdebstrap"
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
    || missing="$missing chromium"
docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null || missing="$missing docker-compose"
command -v psql >/dev/null || missing="$missing postgresql-client"
command -v runuser >/dev/null || missing="$missing util-linux"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"

if [ -n "$missing" ]; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        docker_answers || echo "continuum: Docker does not answer; tests that need it are skipped" >&2
        echo "continuum: not installed:$missing (names of Debian's packages); tests that need them are skipped" >&2
        exit 0
    fi
    echo "installing$missing"
    # The tests start servers of their own; the package need not make one. What is written here is kept.
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
    apt-get -qq update
    # shellcheck disable=SC2086
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Options::=--force-confold install -y --no-install-recommends $missing </dev/null >/dev/null
fi

if ! command -v runsc >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing runsc"
    apt-cache show runsc >/dev/null 2>&1 || apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends runsc </dev/null >/dev/null 2>&1 ||
        echo "continuum: this system has no package runsc; tests on gVisor are skipped (gvisor.dev/docs/user_guide/install)" >&2
fi

# Only the program: its package would start Prometheus.
if ! command -v promtool >/dev/null && [ ! -x "$state/promtool" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "fetching promtool"
    mkdir -p "$state/download"
    apt-cache show prometheus >/dev/null 2>&1 || apt-get -qq update
    if (cd "$state/download" && apt-get -qq -o APT::Sandbox::User=root download prometheus &&
        dpkg-deb --fsys-tarfile prometheus_*.deb | tar -xO ./usr/bin/promtool >promtool && chmod +x promtool && mv promtool ..); then :; else
        echo "continuum: no promtool (Debian's package prometheus has it); tests of the alert rules are skipped" >&2
    fi
    rm -rf "$state/download"
fi

if ! docker_answers; then
    if [ "$(id -u)" != 0 ]; then
        echo "continuum: Docker does not answer; tests that need it are skipped" >&2
        exit 0
    fi
    mkdir -p "$state"
    echo "starting dockerd (make services-stop stops it; log in $log)"
    rm -f /var/run/docker.pid
    write_config
    setsid dockerd --config-file "$config" >"$log" 2>&1 </dev/null &
    echo $! >"$state/dockerd.pid"
    tries=0
    until docker_answers; do
        tries=$((tries + 1))
        if [ "$tries" -gt 120 ]; then
            echo "continuum: dockerd does not answer after 60 s; the end of $log:" >&2
            tail -n 5 "$log" >&2
            exit 1
        fi
        sleep 0.5
    done
fi

if command -v runsc >/dev/null && ! knows_gvisor; then
    mkdir -p "$state"
    if is_ours; then
        # It reads its runtimes again on SIGHUP; containers go on.
        write_config
        kill -HUP "$(cat "$state/dockerd.pid")"
        tries=0
        until knows_gvisor || [ "$tries" -gt 20 ]; do
            tries=$((tries + 1))
            sleep 0.5
        done
    else
        write_config
        echo "continuum: the Docker daemon does not know gVisor; tests on it are skipped. Add \"runtimes\" as in $config" >&2
        echo "continuum: to /etc/docker/daemon.json and send dockerd SIGHUP (or: make services-stop services)" >&2
    fi
fi

sh scripts/make-sandbox-image.sh
