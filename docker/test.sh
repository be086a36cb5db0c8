#!/usr/bin/env bash
# `make image-test`: the Dockerfile linted, built on a Debian base made on the spot, and used: refusals of the entrypoint,
# tests, and `dvc repro` of a tiny grid with rings of 2 ranks, as a user without a name, read-only and with no network.
# What it does not prove: that Ubuntu's and CUDA's packages resolve, and GPU access. See docs/running-on-a-cluster.md.
#   KEEP=folder   work there, and leave base and layers for the next time; else all is removed at the end
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}

skip() { echo "image-test: skipped: $1"; exit 0; }
fail() { echo "image-test: FAILED: $1" >&2; exit 1; }
step() { echo "image-test: $1 (after $SECONDS s)"; }

[ "$(id -u)" = 0 ] || skip "building an image from nothing needs root; you are user $(id -u)"
command -v apt-get >/dev/null || skip "its base is made by debootstrap, which is installed with apt-get; there is none here"

step "hadolint"
"$(dirname "$PYTHON")/hadolint" --ignore DL3008 Dockerfile || fail "hadolint"

step "tools"
missing=()
for package in buildah catatonit debootstrap podman runc; do
  dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
fi

W=${KEEP:-$(mktemp -d /var/tmp/attn-bench-image.XXXXXX)}
mkdir -p "$W/tmp"
printf '[storage]\ndriver = "overlay"\nrunroot = "%s/run"\ngraphroot = "%s/graph"\n' "$W" "$W" >"$W/storage.conf"
export CONTAINERS_STORAGE_CONF=$W/storage.conf BUILDAH_FORMAT=docker BUILDAH_ISOLATION=chroot TMPDIR=$W/tmp
clean() {
  podman --runtime runc rm --all --force >/dev/null 2>&1 || true
  buildah rm --all >/dev/null 2>&1 || true
  rm -rf "$W/context" "$W/work"
  [ -n "${KEEP:-}" ] || { umount "$W/graph/overlay" 2>/dev/null || true; rm -rf "$W"; }
}
trap clean EXIT
trap 'echo "image-test: FAILED in line $LINENO of ${BASH_SOURCE[0]}" >&2' ERR

if ! buildah inspect --type image localhost/base:test >/dev/null 2>&1; then
  step "base"
  rm -rf "$W/rootfs"
  source=$(awk '/^URIs:/ { print $2; exit }' /etc/apt/sources.list.d/debian.sources 2>/dev/null || true)
  debootstrap --variant=minbase --include=ca-certificates bookworm "$W/rootfs" ${source:+"$source"} >"$W/debootstrap.log" 2>&1 ||
    fail "debootstrap: $(tail -n 1 "$W/debootstrap.log")"
  cp /usr/local/share/ca-certificates/*.crt "$W/rootfs/usr/local/share/ca-certificates/" 2>/dev/null || true
  TMPDIR=/tmp chroot "$W/rootfs" update-ca-certificates >"$W/certificates.log" 2>&1 || fail "certificates: $(tail -n 1 "$W/certificates.log")"
  container=$(buildah from scratch)
  buildah add -q "$container" "$W/rootfs" / >/dev/null
  trusted=/etc/ssl/certs/ca-certificates.crt
  buildah config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    --env SSL_CERT_FILE=$trusted --env PIP_CERT=$trusted "$container"
  buildah commit -q --rm "$container" localhost/base:test >/dev/null
  rm -rf "$W/rootfs"
fi

# What a clone holds, and beside it what must stay out of an image.
rm -rf "$W/context" "$W/work"
mkdir -p "$W/context" "$W/work"
git -c safe.directory='*' ls-files -z --cached --others --exclude-standard >"$W/files"
while IFS= read -r -d '' name; do [ ! -e "$name" ] || printf '%s\0' "$name"; done <"$W/files" | sort -z >"$W/tracked"
tar --null --files-from="$W/tracked" -cf - | tar -C "$W/context" -xf -
for name in .dvc/config.local .env deploy/id.key .git/config data/x results/local/machine.json; do
  mkdir -p "$W/context/$(dirname "$name")" && echo "a-secret" >"$W/context/$name"
done

# torch: the build that pip would find on this machine's disk, where there is one; else what TORCH_INDEX has.
wheels=$("$PYTHON" docker/wheels.py)
options=(--build-arg TORCH=torch.txt)
if [ -n "$wheels" ]; then
  options+=(-v "$wheels:/wheels:ro" --build-arg "TORCH_OPTIONS=--no-index --no-deps --find-links /wheels")
elif [ -n "${TORCH_INDEX:-}" ]; then
  options+=(--build-arg "TORCH_OPTIONS=--index-url $TORCH_INDEX")
else
  echo "image-test: no build of torch on this disk and no TORCH_INDEX: pip downloads several GB"
fi
revision=$(git -c safe.directory='*' describe --always --abbrev=40 --dirty)
locks=$(cat requirements/*.txt | sha256sum | cut -c1-64)
for target in test runtime; do
  step "build $target"
  timeout 900 buildah bud --layers --target "$target" --build-arg BASE_IMAGE=localhost/base:test \
    --build-arg "REVISION=$revision" --build-arg "LOCKS=$locks" --build-arg VERSION=test "${options[@]}" \
    -t "localhost/attn-bench:$target" -f Dockerfile "$W/context" >"$W/build.log" 2>&1 ||
    fail "build of $target: $(tail -n 12 "$W/build.log")"
done

. docker/test-uses.sh
echo "image-test: passed in $SECONDS s; the runtime image on Debian with PyTorch's CPU build: $(podman image inspect --format '{{.Size}}' localhost/attn-bench:runtime | awk '{ printf "%.2f GB", $1 / 1e9 }')"
