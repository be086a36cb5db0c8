#!/usr/bin/env bash
# `make test-slurm`: installs Debian's Slurm where it is missing, then tests/test_slurm.py; no service is left behind.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() { echo "test-slurm: skipped: $1"; exit 0; }
[ "$(id -u)" = 0 ] || skip "a controller of one's own is started as root; you are user $(id -u)"
if ! { command -v slurmctld && command -v munged; } >/dev/null; then
  command -v apt-get >/dev/null || skip "Slurm is installed with apt-get; there is none here"
  apt-get update -q >/dev/null
  # Debian starts what it installs; a controller without a configuration does not start.
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends slurm-wlm munge >/dev/null
fi
exec "${PYTHON:-.venv/bin/python}" -m pytest -m slurm tests/test_slurm.py "$@"
