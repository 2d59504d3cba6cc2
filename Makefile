# Building, testing and trying out Cinderblock. `make` alone lists what there is.

SHELL := bash
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: packages tools ## Debian's packages and the tools the tests use

build: packages ## the cinderblock binary (target/debug)
	cargo build

demo: ## the life of one volume on a real Ceph, step by step; RELEASE=20 (or 16, 18): on that Ceph
	lab/demo $(if $(RELEASE),--release $(RELEASE))

test: ## every part of the product once: units, the driver on a real Ceph, csi-sanity, a guest, the chart
	tests/run.sh test

test-more: ## the long rest of what CI runs: sweeps of kills and faults, long lineages, lints, the lab, more in a guest
	tests/run.sh more

test-matrix: packages tools ## librbd of Ceph 16, 18 and 20 on daemons of Ceph 16, 18 and 20: every pair; an hour
	tests/matrix.sh all

test-upgrade: packages ## a driver at work while its cluster goes from Ceph 16 to 18 to 20, daemon by daemon; 4 minutes. LIBRBD=20 (or 18): the driver on that
	tests/upgrade.sh $(LIBRBD)

test-kills: build ## the driver killed at every call it makes, on a real Ceph; more and longer than in `make test-more`
	KILL_SWEEP=all cargo test --test kill_sweep

test-kernels: packages ## what krbd of Linux 6.1, 6.12 and 7, rbd-nbd and fuse take of a Ceph 20; prints the table in docs/reference/compatibility.md
	tests/guest-kernels.sh

test-guest: build ## all of the node's tests in a virtual machine, over rbd and rbd-nbd; more and longer than in `make test-more`
	tests/guest.sh all
	tests/guest-faults.sh

test-fuzz: packages ## ten million inputs for everything that reads what comes from outside; minutes
	FUZZ_CASES=10000000 cargo test --test fuzz

test-hammer: build ## 64 clients and two drivers on the same ten names for a minute, on a real Ceph
	lab/ceph up --monitor-round 0.05
	eval "$$(lab/ceph env)" && HAMMER_SECONDS=60 cargo test --test hammer

bench: packages ## each RPC beside librbd's bare calls, on a real Ceph; renews docs/performance.md; 10 minutes on an idle machine
	BENCH_PAGE=$(CURDIR)/docs/performance.md cargo bench --locked --bench rpcs

test-backups: packages ## a thousand random sequences of writes, snapshots, resizes and backups, restored at every point; 15 minutes
	BACKUP_SEEDS=500 cargo test --test backup on_the_model

test-kubernetes: build kubernetes-node-tools ## a real Kubernetes with the real sidecars and the chart, on a real Ceph; builds Kubernetes first: 20 minutes, once
	lab/test-kubernetes
	tests/kubernetes.sh
	tests/kubernetes-node.sh

test-librbd: packages ## librbd of Ceph 16, 18 and 20 by itself: its headers, and the faults that the driver works around
	tests/librbd.sh

lint: ## formats and lints alone
	tests/run.sh lint

test-image: packages ## the image's root filesystem: lock, size, programs, and a volume's life with the driver inside, on Ceph 16, 18 and 20
	tests/image.sh

image-rootfs: packages ## the root filesystem of the image in target/image, made anew without a container engine
	rm -rf target/image
	image/rootfs.sh target/image

image-lock: ## the packages of the image in the versions Debian has today: image/lock, renewed
	image/lock.sh

image-sbom: target/image/usr/share/cinderblock/sbom.cdx.json ## what is inside the image, as CycloneDX
	@cat $<

target/image/usr/share/cinderblock/sbom.cdx.json:
	$(MAKE) image-rootfs

manifests: .tools/bin/helm ## deploy/cinderblock.yaml, rendered anew from the chart
	deploy/render.sh >deploy/cinderblock.yaml

lab-up: ## a one-node Ceph in .lab/ceph; then: eval "$(lab/ceph env)"
	lab/ceph up

lab-down: ## stops it and removes it
	lab/ceph down

clean: ## removes what was built of this repository, and the lab; the tools stay
	lab/ceph down
	lab/kubernetes down
	cargo clean

distclean: clean ## removes the tools as well: of those, Kubernetes takes 20 minutes to build
	rm -rf .tools

packages:
	lab/setup

tools: .tools/bin/csi-sanity .tools/bin/helm .tools/kubernetes-validate/bin/python

# `cargo install` does nothing when this version is there already. Unoptimised it takes half the time to build, and
# checks this repository in four seconds.
cargo-deny:
	cargo install cargo-deny@0.20.2 --debug --locked --quiet --root .tools --target-dir .tools/target
	rm -rf .tools/target

# Each has a module of its own, see there; it is built again when that module changes.
.tools/bin/csi-sanity: tools/csi-sanity/go.mod tools/csi-sanity/go.sum
	cd tools/csi-sanity && go build -buildvcs=false -ldflags '-s -w' -o $(CURDIR)/$@ github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity

.tools/bin/helm: tools/helm/go.mod tools/helm/go.sum
	cd tools/helm && go build -buildvcs=false -ldflags '-s -w' -o $(CURDIR)/$@ helm.sh/helm/v4/cmd/helm

# In an environment of its own; it is made anew when the list changes.
.tools/kubernetes-validate/bin/python: tools/kubernetes-validate/requirements.txt
	rm -rf .tools/kubernetes-validate
	python3 -m venv .tools/kubernetes-validate
	.tools/kubernetes-validate/bin/pip --quiet --disable-pip-version-check install --require-hashes --requirement $<
	touch $@

# Kubernetes and what belongs to it, for lab/kubernetes. Helm and kubectl ask which version they talk to.
control_plane := $(addprefix .tools/bin/,kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl)
sidecars := $(addprefix .tools/bin/,csi-provisioner csi-attacher csi-resizer csi-snapshotter csi-snapshot-metadata snapshot-controller csi-node-driver-registrar livenessprobe changed-blocks)
containerd := $(addprefix .tools/bin/,containerd ctr containerd-shim-runc-v2)

kubernetes-tools: .tools/bin/etcd .tools/bin/helm $(control_plane) $(sidecars)
kubernetes-node-tools: kubernetes-tools $(containerd)

.tools/bin/etcd: tools/etcd/go.mod tools/etcd/go.sum
	cd tools/etcd && go build -buildvcs=false -trimpath -ldflags '-s -w' -o $(CURDIR)/$@ go.etcd.io/etcd/server/v3

$(control_plane) &: tools/kubernetes/go.mod tools/kubernetes/go.sum
	cd tools/kubernetes && version=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes) && minor=$${version#v1.} && \
	    flag='-X k8s.io/component-base/version.git' && \
	    go build -buildvcs=false -trimpath -ldflags "-s -w $${flag}Version=$$version $${flag}Major=1 $${flag}Minor=$${minor%.*}" -o $(CURDIR)/.tools/bin/ tool

$(sidecars) &: tools/csi-sidecars/go.mod tools/csi-sidecars/go.sum $(wildcard tools/csi-sidecars/*/*.go)
	cd tools/csi-sidecars && go build -buildvcs=false -trimpath -ldflags '-s -w' -o $(CURDIR)/.tools/bin/ tool

$(containerd) &: tools/containerd/go.mod tools/containerd/go.sum
	cd tools/containerd && go build -buildvcs=false -trimpath -ldflags '-s -w' -o $(CURDIR)/.tools/bin/ tool

licences: cargo-deny ## of all crates, and where they come from; when Cargo.lock has changed
	PATH=$(CURDIR)/.tools/bin:$$PATH cargo deny --workspace --all-features check bans licenses sources

.PHONY: help setup packages tools cargo-deny licences bench build demo test test-more test-kills test-kernels test-guest test-fuzz test-backups test-hammer test-librbd test-matrix test-upgrade test-kubernetes test-image image-rootfs image-lock image-sbom kubernetes-tools kubernetes-node-tools lint manifests lab-up lab-down clean distclean
