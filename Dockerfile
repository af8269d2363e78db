# Both images of Signal, each with its binary and what that needs to run, and nothing else (deploy/rootfs.sh):
#
#   docker build --target gateway  --tag signal-gateway:0.1.0 .
#   docker build --target operator --tag signal-operator:0.1.0 .
#
# For another architecture, or both: `docker buildx build --platform linux/amd64,linux/arm64 ...`. Compiling happens on the architecture
# that builds. The contents of the amd64 images are what the end-to-end tests run; arm64 is cross-compiled and has not been executed.

FROM --platform=$BUILDPLATFORM rust:1.95-bookworm AS build
ARG BUILDARCH
ARG TARGETARCH
ENV DEBIAN_FRONTEND=noninteractive
# What librdkafka is built with: cmake, and the headers of OpenSSL, curl and zlib of the architecture that the binaries are for.
RUN set -eu; \
    packages="binutils ca-certificates cmake pkg-config"; \
    if [ "$TARGETARCH" != "$BUILDARCH" ]; then \
        dpkg --add-architecture "$TARGETARCH"; \
        packages="$packages crossbuild-essential-$TARGETARCH"; \
    fi; \
    apt-get update; \
    apt-get install -y --no-install-recommends $packages \
        "libssl-dev:$TARGETARCH" "libcurl4-openssl-dev:$TARGETARCH" "zlib1g-dev:$TARGETARCH" "libgcc-s1:$TARGETARCH"; \
    rm -rf /var/lib/apt/lists/*
WORKDIR /signal
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/signal/target,id=signal-target-$TARGETARCH \
    set -eu; \
    case "$TARGETARCH" in \
        amd64) machine=x86_64 ;; \
        arm64) machine=aarch64 ;; \
        *) echo "no image is made for $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    target="$machine-unknown-linux-gnu"; gnu="$machine-linux-gnu"; \
    under=$(echo "$target" | tr - _); upper=$(echo "$under" | tr a-z A-Z); \
    rustup target add "$target"; \
    export "CARGO_TARGET_${upper}_LINKER=$gnu-gcc" "CC_$under=$gnu-gcc" "CXX_$under=$gnu-g++" "AR_$under=$gnu-ar"; \
    export PKG_CONFIG_ALLOW_CROSS=1 "PKG_CONFIG_LIBDIR_$under=/usr/lib/$gnu/pkgconfig:/usr/share/pkgconfig"; \
    cargo build --release --locked --target "$target" -p signal-gateway -p signal-operator --bins; \
    for name in gateway operator; do \
        deploy/rootfs.sh "target/$target/release/signal-$name" "/rootfs/$name"; \
    done

FROM scratch AS gateway
LABEL org.opencontainers.image.title="signal-gateway" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /rootfs/gateway /
USER 65532:65532
EXPOSE 8080 9090
ENTRYPOINT ["/usr/bin/signal-gateway"]

FROM scratch AS operator
LABEL org.opencontainers.image.title="signal-operator" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /rootfs/operator /
USER 65532:65532
EXPOSE 8080 9443
ENTRYPOINT ["/usr/bin/signal-operator"]
