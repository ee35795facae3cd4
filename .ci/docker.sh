#!/usr/bin/env bash
# A Docker engine for CI: `start` installs missing packages and starts an engine if none responds; `stop` ends only the
# engine that `start` started. Runs as root on Debian.
set -euo pipefail
cd "$(dirname "$0")/.."

state=build/docker # state of the engine that this script started
log=$state/log

# As in .ci/run.
apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@"; }

answers() { docker version >/dev/null 2>&1; }

# By default with a bridge network; without one if the kernel does not allow it: builds and tests use no network or the
# host's.
launch() {
    dockerd --pidfile "$PWD/$state/dockerd.pid" "$@" >"$log" 2>&1 &
    local pid=$!
    for _ in $(seq 300); do
        if answers; then
            echo "$pid" >$state/pid
            disown "$pid"
            return 0
        fi
        kill -0 "$pid" 2>/dev/null || return 1
        sleep 0.1
    done
    kill "$pid"
    wait "$pid" || true
    return 1
}

case ${1-} in
start)
    missing=()
    command -v dockerd >/dev/null || answers || missing+=(docker.io)
    command -v docker >/dev/null || missing+=(docker.io)
    command -v debootstrap >/dev/null || missing+=(debootstrap) # builds the base image
    if ((${#missing[@]})); then
        apt update
        apt install -y --no-install-recommends "${missing[@]}"
        # A separate package since Debian 13.
        command -v docker >/dev/null || apt install -y --no-install-recommends docker-cli
    fi
    answers && exit 0
    mkdir -p $state
    launch || {
        echo "dockerd does not start with a bridge network, now without one:" >&2
        tail -n 5 $log >&2
        launch --iptables=false --ip6tables=false --bridge=none
    } || {
        tail -n 5 $log >&2
        echo "error: dockerd does not start here, see $log" >&2
        exit 1
    }
    ;;
stop)
    [[ -f $state/pid ]] || exit 0
    pid=$(<$state/pid)
    rm $state/pid
    [[ $(cat "/proc/$pid/comm" 2>/dev/null) == dockerd ]] || exit 0 # it has ended, and its pid may have been reused
    kill "$pid" 2>/dev/null || exit 0
    # `kill -0` also succeeds for a zombie, whose parent may never wait for it.
    while kill -0 "$pid" 2>/dev/null && ! grep -qs '^State:\s*Z' "/proc/$pid/status"; do sleep 0.1; done
    ;;
*)
    echo "usage: $0 start|stop" >&2
    exit 2
    ;;
esac
