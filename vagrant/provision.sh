#!/bin/bash
# Puts on a machine what shadowtap needs: Debian's packages, then .venv with the locked Python packages and shadowtap.
# `make setup` runs it, and so does a Vagrant box. Run again, it does only what is still to be done.
set -euo pipefail
umask 022

cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly PYTHON=/usr/bin/python3   # Debian's own: bcc's module belongs to it
readonly STAMP=.venv/.provisioned

# What the agent needs, then what the lab and the tests need.
packages() {
    echo python3 python3-venv python3-bpfcc "linux-headers-$(dpkg --print-architecture)" iproute2 util-linux
    echo haproxy nginx-light wrk nghttp2-client tcpdump curl procps netbase  # netbase: wrk wants /etc/services
    echo prometheus prometheus-alertmanager prometheus-node-exporter
}

say() { echo "setup: $*"; }

fail() {
    echo "setup: $*" >&2
    exit 1
}

is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

missing_packages() {
    local package
    for package in $(packages); do
        is_installed "$package" || echo "$package"
    done
}

# Invoke-rc.d and systemd ask this file before they start a service that a package brings.
forbid_services() {
    [ -e /usr/sbin/policy-rc.d ] && return
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
}

# A web server that came only for the lab must not listen after the next boot either.
disable_new_services() {
    local package
    command -v systemctl >/dev/null || return 0
    for package in "$@"; do
        case $package in
            haproxy | prometheus*) systemctl disable --quiet "$package.service" 2>/dev/null || true ;;
            nginx-light) systemctl disable --quiet nginx.service 2>/dev/null || true ;;
        esac
    done
}

install_packages() {
    local missing
    if ! command -v apt-get >/dev/null; then
        say "no apt-get here. Install by your own means what Debian calls: python3-venv python3-bpfcc linux-headers" \
            "iproute2 util-linux haproxy nginx-light wrk nghttp2-client tcpdump curl procps netbase" \
            "prometheus prometheus-alertmanager prometheus-node-exporter"
        return
    fi
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -eq 0 ] && return
    if [ "$(id -u)" -ne 0 ]; then
        say "missing: ${missing[*]}. Install them as root: apt-get install ${missing[*]}"
        return
    fi
    say "installing ${missing[*]}"
    forbid_services
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || say "apt-get update failed; trying with the package lists at hand"
    apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "apt-get could not install ${missing[*]}: see above"
    disable_new_services "${missing[@]}"
}

state() { sha256sum requirements.lock pyproject.toml vagrant/provision.sh; }

make_environment() {
    [ -x "$PYTHON" ] || fail "$PYTHON is missing: install Python 3.11 or newer there"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$PYTHON is $("$PYTHON" -V), but 3.11 or newer is needed (Debian 12 has it)"
    if [ -x .venv/bin/shadowtap ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$(state)" ]; then
        return
    fi
    say "making .venv"
    # A checkout that was moved or copied has an environment that still points to its old place.
    if [ -e .venv ] && ! grep -qsxF "#!$PWD/.venv/bin/python3" .venv/bin/pip; then
        rm -rf .venv
    fi
    "$PYTHON" -m venv .venv || fail "$PYTHON -m venv failed: install python3-venv"
    local pip=(.venv/bin/python -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" install --no-deps -r requirements.lock || fail "pip could not install requirements.lock: is PyPI reachable?"
    "${pip[@]}" install --no-deps --no-build-isolation -e . || fail "pip could not install shadowtap itself: see above"
    .venv/bin/python -m pip check >/dev/null || fail "requirements.lock lacks something: run .venv/bin/pip check"
    [ -x .venv/bin/shadowtap ] || fail ".venv/bin/shadowtap was not made: see [project.scripts] in pyproject.toml"
    state >"$STAMP"
}

install_packages
make_environment
