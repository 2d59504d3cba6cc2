# The driver's image: `docker build -t localhost/cinderblock:0.1.0 .`, or the same with buildah or
# podman. The architecture is that of the builder, or what --platform says; nothing below names one.
# image/rootfs.sh makes the same root filesystem without an engine.
#
# SUITE is the suite of Debian that fills the image, and with it the release of librbd: forky has
# 20.2, bookworm 16.2. Its packages are those of image/lock, byte for byte. `--build-arg
# SUITE=bookworm` takes the other. The build needs Debian's mirror.
#
# Bases are pinned by tag; a release pins them by digest as well, as whoever builds it trusts:
#   docker build --build-arg DEBIAN=debian:12.11-slim@sha256:… --build-arg RUST=rust:1.95.0-slim-bookworm@sha256:… .
# (`docker buildx imagetools inspect debian:12.11-slim` prints the digest.) Neither base is in the
# image. RUST stays bookworm's whatever SUITE is: the binary is made of the headers of librbd 16.2
# and of an older C library, and so runs on all suites.
ARG SUITE=forky
ARG DEBIAN=debian:12.11-slim
ARG RUST=rust:1.95.0-slim-bookworm

FROM ${DEBIAN} AS debian
ARG SUITE
COPY image /src/image
RUN /src/image/debian.sh "$SUITE" /rootfs

FROM ${RUST} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc jq libc6-dev librados-dev librbd-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# What the binary is made of, and no more: a change of a test or a document builds nothing anew.
COPY Cargo.toml Cargo.lock build.rs ./
COPY proto proto
COPY tests/externs tests/externs
COPY src src
RUN cargo build --release --locked --bin cinderblock
COPY image image
COPY --from=debian /rootfs/var/lib/dpkg /rootfs/var/lib/dpkg
COPY --from=debian /rootfs/usr/lib/os-release /rootfs/usr/lib/os-release
RUN image/sbom.sh /rootfs >/sbom.cdx.json

FROM scratch
COPY --from=debian /rootfs /
COPY --from=build /src/target/release/cinderblock /usr/local/bin/cinderblock
# What is inside: Debian's packages and the crates of the binary.
COPY --from=build /sbom.cdx.json /usr/share/cinderblock/sbom.cdx.json
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin
# The controller's user. The node plugin is run as root, by the chart.
USER 65532:65532
# tini reaps the daemons of the mounter fuse when they end, since nobody else would.
ENTRYPOINT ["/usr/bin/tini", "--", "/usr/local/bin/cinderblock"]
CMD ["--help"]
