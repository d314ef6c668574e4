# flashbias-server, with flashbias-call and flashbias-load beside it.
#
#   docker build -t flashbias .                        CUDA and CPU kernels
#   docker build -t flashbias:cpu --build-arg BUILD_IMAGE=debian:12-slim \
#     --build-arg RUNTIME_IMAGE=debian:12-slim .       CPU kernels only: no nvcc in the build image
#
# Both images must be the same distribution: Debian 12 or Ubuntu 24.04. The CUDA runtime is linked
# statically: the runtime image needs no toolkit, the driver comes from the NVIDIA container toolkit.
# deploy/README.md says how to run it.
ARG BUILD_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04
ARG RUNTIME_IMAGE=ubuntu:24.04

# Packages first: they change less often than the sources.
FROM ${BUILD_IMAGE} AS packages
WORKDIR /source
COPY deploy/install_packages.sh deploy/
RUN deploy/install_packages.sh

FROM packages AS build
COPY . .
# ON refuses a build image without nvcc, OFF leaves the CUDA kernels out.
ARG WITH_CUDA=AUTO
RUN --mount=type=cache,target=/var/cache/ccache \
    export CCACHE_DIR=/var/cache/ccache && ccache --zero-stats \
 && cmake --preset release -DFLASHBIAS_WITH_CUDA="${WITH_CUDA}" \
      -DFLASHBIAS_BUILD_TESTS=OFF -DFLASHBIAS_BUILD_BENCHMARKS=OFF \
 && cmake --build --preset release --parallel "$(nproc)" \
      --target flashbias-server flashbias-call flashbias-load \
 && mkdir /programs \
 && cp build/release/bin/flashbias-server build/release/bin/flashbias-call \
       build/release/bin/flashbias-load /programs/ \
 && strip /programs/* \
 && ccache --show-stats \
 && rm -rf build
# The packages that own the shared libraries which the programs load.
RUN ldd /programs/* | awk '$2 == "=>" && $3 ~ /^\// {print $1}' | sort -u \
  | while read -r library; do dpkg-query --search "*/$(gcc -print-multiarch)/$library"; done \
  | cut -d: -f1 | sort -u > /runtime-packages

FROM ${RUNTIME_IMAGE}
# The user has a number and not only a name: Kubernetes' runAsNonRoot can judge that alone.
RUN --mount=type=bind,from=build,source=/runtime-packages,target=/mnt/runtime-packages \
    printf 'path-exclude=/usr/share/%s/*\n' doc info locale man > /etc/dpkg/dpkg.cfg.d/flashbias \
 && echo 'path-include=/usr/share/doc/*/copyright' >> /etc/dpkg/dpkg.cfg.d/flashbias \
 && apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive xargs apt-get install --yes -qq --no-install-recommends \
      < /mnt/runtime-packages \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/log/* \
 && groupadd --gid 10001 flashbias \
 && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin flashbias
COPY --from=build /programs/ /usr/local/bin/
# Every flag at its default, commented out; mount another file over it.
COPY deploy/flashbias-server.flags /etc/flashbias/flashbias-server.flags
# What the NVIDIA container toolkit gives a container: devices, and the driver's libraries.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
# 8471: gRPC. 8472: GET /metrics.
EXPOSE 8471 8472
# SIGTERM drains for --drain_timeout, 30s by default: what was accepted is answered. What stops the
# container must wait longer.
STOPSIGNAL SIGTERM
# The flag file says where the server listens, so the check reads it too; it gives up after 5 s.
HEALTHCHECK --interval=10s --timeout=7s --start-period=60s --retries=3 \
  CMD ["flashbias-server", "--flagfile=/etc/flashbias/flashbias-server.flags", "--health_check"]
ENTRYPOINT ["flashbias-server", "--flagfile=/etc/flashbias/flashbias-server.flags"]
# Last: they change with every commit.
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="flashbias" \
      org.opencontainers.image.description="Attention with ALiBi or low-rank bias as a gRPC service" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
