#!/usr/bin/env bash
# Build the image, with docker or, where there is no daemon, with buildah.
#
#   scripts/build_image.sh [options of the builder, e.g. --target test --build-arg TORCH_BACKEND=cu130]
#
# IMAGE names it. buildah gets pip's certificate and wheel folder of this machine (PIP_CERT,
# PIP_FIND_LINKS) as mounts, which leave no trace in the image. When the base image can neither be
# found nor pulled, debootstrap makes it.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE="${IMAGE:-bids_perfdeficit:latest}"
BASE=docker.io/library/debian:bookworm-slim
PYTHON="${PYTHON:-.venv/bin/python}"
arguments=(
    --tag "$IMAGE"
    --build-arg "VERSION=$("$PYTHON" -c 'from bids_perfdeficit import __version__ as v; print(v)')"
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
    "$@"
)

if docker info >/dev/null 2>&1; then
    exec docker build "${arguments[@]}" .
fi
if ! command -v buildah >/dev/null; then
    echo 'neither a docker daemon nor buildah was found; on Debian: apt-get install buildah podman' >&2
    exit 69
fi

aside="$(mktemp -d)"
trap 'rm -rf "$aside"' EXIT
if ! buildah inspect --type image "$BASE" >/dev/null 2>&1 && ! buildah pull -q "$BASE" 2>/dev/null; then
    echo "$BASE cannot be pulled; making it with debootstrap"
    # From the archive that this machine itself installs from; debootstrap's own where none is set.
    mirror="$(sed -nE 's/^(URIs:|deb( \[[^]]*\])?) +([^ ]+).*/\3/p' /etc/apt/sources.list \
        /etc/apt/sources.list.d/* 2>/dev/null | head -n 1)"
    debootstrap --variant=minbase --include=ca-certificates bookworm "$aside/root" \
        ${mirror:+"$mirror"} >"$aside/log" || { tail "$aside/log" >&2; exit 1; }
    rm -rf "$aside"/root/var/cache/* "$aside"/root/var/lib/apt/lists/* "$aside"/root/usr/share/{doc,man,locale}/*
    tar -C "$aside/root" -cf - . | podman import - "$BASE" >/dev/null
fi

printf '[global]\n' >"$aside/pip.conf"
if [[ -n "${PIP_CERT:-}" ]]; then
    printf 'cert = /run/host-ca.crt\n' >>"$aside/pip.conf"
    arguments+=(--volume "$PIP_CERT:/run/host-ca.crt:ro")
fi
if [[ -d "${PIP_FIND_LINKS:-}" ]]; then
    printf 'find-links = /run/host-wheels\n' >>"$aside/pip.conf"
    arguments+=(--volume "$PIP_FIND_LINKS:/run/host-wheels:ro")
fi
arguments+=(--volume "$aside/pip.conf:/etc/pip.conf:ro")
# Without a target this buildah would build the stage of the tests too.
buildah build --isolation chroot --layers --target production "${arguments[@]}" .
