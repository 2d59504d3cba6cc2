# The driver's image: `docker build -t localhost/cinderblock:0.1.0 .`, or the same with buildah or podman. The architecture is that of the
# builder; nothing below names one.

FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev librados-dev librbd-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# What the binary is made of, and no more: a change of a test or a document builds nothing anew.
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY tests/externs tests/externs
COPY src src
RUN cargo build --release --locked --bin cinderblock

FROM debian:12.11-slim
# librados and librbd are the driver. For nodes: mkfs, fsck and grow of ext4 and xfs; mount, blkid and losetup; modprobe for krbd and nbd; rbd-nbd; and for the mounter
# fuse, qemu-storage-daemon with its rbd driver (qemu-utils only keeps that driver's package from bringing a whole emulator). tini reaps
# the daemon when it ends, since nobody else would.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
        librados2 librbd1 e2fsprogs xfsprogs mount util-linux kmod rbd-nbd qemu-system-common qemu-block-extra qemu-utils tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=build /src/target/release/cinderblock /usr/local/bin/cinderblock
# The controller's user. The node plugin is run as root, by the chart.
USER 65532:65532
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/cinderblock"]
CMD ["--help"]
