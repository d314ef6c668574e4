# flashbias-server on the CPU, with flashbias-call and flashbias-load beside it.
#
#   docker build -t flashbias .
#   docker run --rm -p 8471:8471 -p 8472:8472 flashbias
#
# Both images must be the same distribution: Debian 12 or Ubuntu 24.04.
ARG BUILD_IMAGE=debian:12-slim
ARG RUNTIME_IMAGE=debian:12-slim

FROM ${BUILD_IMAGE} AS build
WORKDIR /source
# Packages first: they change less often than the sources.
COPY deploy/install_packages.sh deploy/
RUN deploy/install_packages.sh
COPY . .
RUN cmake --preset release -DFLASHBIAS_BUILD_TESTS=OFF -DFLASHBIAS_BUILD_BENCHMARKS=OFF \
 && cmake --build --preset release --parallel "$(nproc)" \
      --target flashbias-server flashbias-call flashbias-load \
 && mkdir /programs \
 && cp build/release/bin/flashbias-server build/release/bin/flashbias-call \
       build/release/bin/flashbias-load /programs/ \
 && strip /programs/*
# The packages that own the shared libraries which the programs load.
RUN ldd /programs/* | awk '$2 == "=>" && $3 ~ /^\// {print $1}' | sort -u \
  | while read -r library; do dpkg-query --search "*/$(gcc -print-multiarch)/$library"; done \
  | cut -d: -f1 | sort -u > /runtime-packages

FROM ${RUNTIME_IMAGE}
COPY --from=build /runtime-packages /tmp/
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive xargs apt-get install --yes -qq --no-install-recommends \
      < /tmp/runtime-packages \
 && rm -rf /var/lib/apt/lists/* /tmp/runtime-packages \
 && useradd --system --no-create-home --shell /usr/sbin/nologin flashbias
COPY --from=build /programs/ /usr/local/bin/
USER flashbias
# 8471: gRPC. 8472: GET /metrics.
EXPOSE 8471 8472
# SIGTERM drains: what was accepted is answered.
STOPSIGNAL SIGTERM
# With the default address; the check itself gives up after 5 s.
HEALTHCHECK --interval=10s --timeout=7s --start-period=10s \
  CMD ["flashbias-server", "--health_check"]
ENTRYPOINT ["flashbias-server"]
