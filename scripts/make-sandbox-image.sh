#!/bin/sh
# Build the sandbox image from Debian packages and give it to Docker: for hosts that reach no registry.
#
#   CONTAINER_IMAGE   the name it gets (default: python:3.9-slim, the worker's own default)
#   SUITE             the Debian release to build from (default: bookworm)
#   MIRROR            a Debian mirror (default: what apt on this machine uses)
#   FORCE=1           build even where an image of that name exists
set -eu

image=${CONTAINER_IMAGE:-python:3.9-slim}
suite=${SUITE:-bookworm}

fail() {
    echo "make-sandbox-image: $1" >&2
    exit 1
}

command -v docker >/dev/null || fail "the docker command is missing: apt-get install docker.io"
docker version >/dev/null 2>&1 || fail "the Docker daemon does not answer: start dockerd, or set DOCKER_HOST"
if [ "${FORCE:-}" != 1 ] && docker image inspect "$image" >/dev/null 2>&1; then
    echo "$image is there already (FORCE=1 builds it again)"
    exit 0
fi
[ "$(id -u)" = 0 ] || fail "needs root, to make the files of the image belong to it: run it with sudo"
command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing: apt-get install mmdebstrap (Debian or Ubuntu)"

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
trap 'exit 1' HUP INT TERM

echo "building $image from Debian $suite (half a minute or so)"
# shellcheck disable=SC2086  # MIRROR is left out when it is empty
mmdebstrap --quiet --variant=minbase --include=python3,iptables,ca-certificates \
    --customize-hook='ln -sf python3 "$1/usr/bin/python"' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/usr/share/doc/*' \
    "$suite" "$directory/root.tar" ${MIRROR:-}

docker import \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' \
    --change 'CMD ["python3"]' \
    "$directory/root.tar" "$image" >/dev/null
echo "$image is ready: $(docker run --rm --network none "$image" python --version)"
