#!/usr/bin/env bash
# Build the image, with docker or, where there is no daemon, with buildah.
#
#   scripts/build_image.sh [options of the builder, e.g. --target test --build-arg TORCH_BACKEND=cu130]
#
# From the environment:
#   IMAGE               its name (default: bids_perfdeficit:latest)
#   BASE_IMAGE          what it is built on (default: docker.io/library/debian:bookworm-slim, which
#                       has Python 3.11; debian:trixie-slim has 3.13)
#   SOURCE_DATE_EPOCH   the time of every file and of the image, seconds since 1970 (default: that of
#                       the commit), so that the same commit gives the same layers
#
# buildah gets pip's certificate and wheel folder of this machine (PIP_CERT, PIP_FIND_LINKS) as
# mounts, which leave no trace in the image. When a base image of Debian can neither be found nor
# pulled, debootstrap makes it.
set -euo pipefail
cd "$(dirname "$0")/.."

IMAGE="${IMAGE:-bids_perfdeficit:latest}"
BASE_IMAGE="${BASE_IMAGE:-docker.io/library/debian:bookworm-slim}"
PYTHON="${PYTHON:-.venv/bin/python}"
SOURCE_DATE_EPOCH="${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}"
export SOURCE_DATE_EPOCH
arguments=(
    --tag "$IMAGE"
    --build-arg "BASE_IMAGE=$BASE_IMAGE"
    --build-arg "SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH"
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
if ! buildah inspect --type image "$BASE_IMAGE" >/dev/null 2>&1 \
    && ! buildah pull -q "$BASE_IMAGE" 2>"$aside/pull"; then
    if [[ "$BASE_IMAGE" != docker.io/library/debian:* ]]; then
        cat "$aside/pull" >&2
        exit 69
    fi
    suite="${BASE_IMAGE##*:}"
    suite="${suite%-slim}"
    echo "$BASE_IMAGE cannot be pulled; making it with debootstrap"
    # From the archive that this machine itself installs from; debootstrap's own where none is set.
    mirror="$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2>/dev/null || true; } \
        | sed -nE 's/^(URIs:|deb( \[[^]]*\])?) +([^ ]+).*/\3/p' | grep -m 1 debian || true)"
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$aside/root" \
        ${mirror:+"$mirror"} >"$aside/log" || { tail "$aside/log" >&2; exit 1; }
    rm -rf "$aside"/root/var/{cache,log}/* "$aside"/root/var/lib/apt/lists/* \
        "$aside"/root/usr/share/{doc,man,locale}/*
    tar -C "$aside/root" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --numeric-owner -cf - . \
        | podman import - "$BASE_IMAGE" >/dev/null
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
buildah build --isolation chroot --layers --timestamp "$SOURCE_DATE_EPOCH" --target production \
    "${arguments[@]}" .
