//! `cinderblock serve`: the driver itself.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cinderblock::csi::clusters::Clusters;
use cinderblock::csi::config::Config;
use cinderblock::csi::controller::ControllerService;
use cinderblock::csi::endpoint::Endpoint;
use cinderblock::csi::identity::IdentityService;
use cinderblock::csi::node::NodeService;
use cinderblock::csi::operations::THREADS_PER_CLUSTER;
use cinderblock::csi::proto::controller_server::ControllerServer;
use cinderblock::csi::proto::group_controller_server::GroupControllerServer;
use cinderblock::csi::proto::identity_server::IdentityServer;
use cinderblock::csi::proto::node_server::NodeServer;
use cinderblock::csi::proto::snapshot_metadata_server::SnapshotMetadataServer;
use cinderblock::csi::server::{CsiSocket, termination_signal};
use cinderblock::csi::snapshot_metadata::SnapshotMetadataService;
use cinderblock::csi::validate::NODE_ID_BYTES;
use cinderblock::csi::{ids, topology};
use cinderblock::kube::{self, Nodes, Recorder};
use cinderblock::monitoring;
use cinderblock::node::Node;
use cinderblock::rbd::ceph::{self, Connections, Timeouts};
use cinderblock::telemetry::LogArgs;
use clap::{Args, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tonic::service::Routes;

/// How long RPCs in flight may take to finish after SIGTERM. Kubernetes kills after 30 seconds.
const GRACE: Duration = Duration::from_secs(25);
/// How long what their answers left to be settled may take after that. Kubernetes gives a pod 30
/// seconds in all.
const SETTLING: Duration = Duration::from_secs(3);

/// Serve CSI on a unix socket, as Kubernetes and its sidecars call it.
///
/// The controller role makes, deletes, clones and snapshots volumes and needs only the network; the
/// node role attaches, formats and mounts them and runs as root on every node. Secrets come with
/// each request; the configuration names the clusters.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  # Everything on one machine, for a try-out:
  cinderblock serve --endpoint unix:///run/cinderblock/csi.sock --node-id $(hostname) --config clusters.yaml

  # clusters.yaml (ceph-csi's config.json works as it is):
  - clusterID: prod
    monitors: [\"10.0.0.1\", \"10.0.0.2\", \"10.0.0.3\"]

Exit status: 0 after SIGTERM, 1 when serving fails, 2 when arguments or the configuration are wrong.")]
pub(crate) struct ServeArgs {
    /// The socket to serve: unix:///absolute/path.sock
    #[arg(long, env = "CSI_ENDPOINT", hide_env_values = true, value_name = "URL")]
    endpoint: Endpoint,

    /// Which services to serve.
    #[arg(long, value_enum, default_value = "all")]
    role: Role,

    /// This node's id, as the orchestrator will name it when it publishes volumes here. The node
    /// role needs it.
    #[arg(long, value_name = "ID", value_parser = node_id, required_if_eq_any([("role", "node"), ("role", "all")]))]
    node_id: Option<String>,

    /// The clusters there are: a YAML or JSON file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// The name of this installation. Two that share a pool need different ones; it names the
    /// catalogue, so it is kept for as long as its volumes live.
    #[arg(long, default_value = "default", value_name = "NAME", value_parser = instance)]
    instance: String,

    /// The CSI driver's name, as in CSIDriver and StorageClass objects.
    #[arg(long, default_value = "rbd.csi.cinderblock.dev", value_name = "NAME", value_parser = driver_name)]
    driver_name: String,

    /// Seconds after which a request that brings no deadline of its own is told how far its work
    /// is.
    #[arg(long, default_value = "60", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    rpc_timeout: u64,

    /// Where the node role keeps what it must find again after a restart: which volumes it
    /// attached, never a key.
    #[arg(long, default_value = "/var/lib/cinderblock", value_name = "DIRECTORY")]
    state_dir: PathBuf,

    /// How many volumes a node may have at once; any number when not said. The node role reports it
    /// to the orchestrator; the controller role counts in each pool and namespace, and refuses to
    /// publish one more there.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    max_volumes_per_node: Option<u32>,

    /// Fence no node. Without this, ControllerUnpublishVolume of a node that may still write to the
    /// volume, as a lost one may, puts its clients of this volume on Ceph's blocklist, for five
    /// years, before it lets go. With it that is FAILED_PRECONDITION with the commands to run by
    /// hand, and the volume stays published.
    #[arg(long)]
    no_fence: bool,

    /// Where this node is, as KEY=VALUE; several times for several. Needed when a cluster of the
    /// configuration has a `topology`.
    #[arg(long, value_name = "KEY=VALUE", value_parser = topology::segment)]
    topology: Vec<(String, String)>,

    /// Serve /metrics for Prometheus, /healthz and /readyz over HTTP there: :PORT for every address
    /// of this host, or ADDRESS:PORT. All who reach it can read them. Without this there is no
    /// such port.
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<monitoring::Address>,

    /// Speak to Kubernetes too, as the pod's service account, or as KUBECONFIG says outside a pod:
    /// the controller role records events on claims, volumes, snapshots and nodes, and cuts off no
    /// node that is Ready, has no taint node.kubernetes.io/out-of-service and lists the volume
    /// among its volumesInUse.
    #[arg(long)]
    kubernetes: bool,

    /// Offer what is alpha in CSI 1.13 and unknown to older sidecars: the health of volumes and of
    /// the storage.
    #[arg(long)]
    enable_alpha: bool,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Volumes and snapshots.
    Controller,
    /// Attaching and mounting on this node.
    Node,
    /// Both, on one machine.
    All,
}

fn instance(text: &str) -> Result<String, String> {
    if ids::is_name(text) && text.len() <= 32 {
        return Ok(text.to_string());
    }
    Err("an instance is 1 to 32 letters, digits, '.', '_' or '-'".to_string())
}

fn node_id(text: &str) -> Result<String, String> {
    if (1..=NODE_ID_BYTES).contains(&text.len()) {
        return Ok(text.to_string());
    }
    Err(format!("a node's id has 1 to {NODE_ID_BYTES} bytes, this one {}", text.len()))
}

fn driver_name(text: &str) -> Result<String, String> {
    let inner = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    let ends = |c: char| c.is_ascii_alphabetic();
    if inner && text.len() <= 63 && text.starts_with(ends) && text.ends_with(ends) {
        return Ok(text.to_string());
    }
    Err("a driver name is 1 to 63 letters, digits, '.' and '-', with a letter at both ends"
        .to_string())
}

/// Serves until SIGTERM or SIGINT.
pub(crate) fn run(args: ServeArgs) -> ExitCode {
    if let Err(error) = args.log.clone().init() {
        eprintln!("cinderblock serve: logging cannot start: {error}");
        return ExitCode::FAILURE;
    }
    super::version::log();
    let config = match Config::read(&args.config) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("cinderblock serve: {error}");
            return ExitCode::from(2);
        }
    };
    if topology::is_used(&config) && args.role != Role::Controller && args.topology.is_empty() {
        eprintln!(
            "cinderblock serve: a cluster of the configuration has a topology, so this node must say where it is: --topology KEY=VALUE"
        );
        return ExitCode::from(2);
    }
    raise_descriptor_limit();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // More than all bounded work can take, so that what hangs never fills the pool of blocking
    // threads.
    runtime.enable_all().max_blocking_threads(blocking_threads(&config));
    let runtime = match runtime.build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cinderblock serve: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let served = runtime.block_on(serve(args, config));
    // Work in flight is in the catalogue and the journal: a call that is stuck in librbd must not
    // keep the process.
    runtime.shutdown_background();
    match served {
        Ok(()) => ceph::end_process(0),
        Err(error) => {
            eprintln!("cinderblock serve: {error}");
            ceph::end_process(1)
        }
    }
}

/// Allows as many file descriptors as the system lets us: many start programs with a low limit that
/// they may raise.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of file descriptors stays as it is");
    }
}

/// Blocking threads for a configuration: for the operations on each cluster and on the node, the
/// sweeper of each pool, and some to spare.
fn blocking_threads(config: &Config) -> usize {
    let pools: usize = config.clusters.values().map(|cluster| cluster.pools.len()).sum();
    (config.clusters.len() + 1) * THREADS_PER_CLUSTER + pools + 64
}

async fn serve(args: ServeArgs, config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let timeout = Duration::from_secs(args.rpc_timeout);
    let shutdown = termination_signal()?;
    // Before the socket is there: a caller that finds it may rely on what the arguments promise.
    let wanted = args.kubernetes && args.role != Role::Node;
    let kubernetes = if wanted { Some(kube::connect().await?) } else { None };
    let port = match &args.metrics_address {
        Some(address) => Some(monitoring::Port::bind(address).await?),
        None => None,
    };
    let socket = CsiSocket::bind(&args.endpoint).await?;
    let clusters: Vec<_> = config.clusters.keys().map(String::as_str).collect();
    tracing::info!(
        role = ?args.role,
        clusters = clusters.join(","),
        instance = args.instance,
        driver_name = args.driver_name,
        node_id = args.node_id,
        "serves these clusters"
    );

    let identity = match args.role {
        Role::Node => IdentityService::always_ready(&args.driver_name),
        _ => IdentityService::watching(
            &args.driver_name,
            config.clusters.values().cloned().collect(),
        ),
    };
    if let Some(port) = port {
        let identity = identity.clone();
        tokio::spawn(port.serve(move || identity.is_ready()));
    }
    let topology_used = topology::is_used(&config);
    let mut routes = Routes::new(IdentityServer::new(identity.with_topology(topology_used)));

    let mut sweeper = None;
    if args.role != Role::Node {
        let connections = Arc::new(Connections::default());
        let stuck = connections.clone();
        let mut nodes: BTreeSet<String> = config.nodes.iter().cloned().collect();
        if args.role == Role::All {
            nodes.extend(args.node_id.clone());
        }
        let clusters = Arc::new(Clusters::new(
            config.clone(),
            &args.instance,
            Timeouts::default(),
            Box::new(move |options| connections.get(options)),
            Box::new(move |address| stuck.set_aside(address)),
        ));
        let mut controller = ControllerService::new(clusters, nodes, timeout)
            .with_volumes_per_node(args.max_volumes_per_node)
            .with_fencing(!args.no_fence)
            .with_alpha(args.enable_alpha);
        controller.sweeper().start();
        sweeper = Some(controller.sweeper().clone());
        if let Some(client) = kubernetes {
            let recorder = Recorder::new(client.clone(), &args.driver_name);
            controller =
                controller.with_kubernetes(recorder, Nodes::new(client, &args.driver_name));
        } else {
            tracing::info!(
                "runs without Kubernetes (--kubernetes): no events are recorded, and nodes that are unpublished while they may write are fenced without a \
                 question"
            );
        }
        let snapshot_metadata = SnapshotMetadataService::new(controller.clone());
        routes = routes
            .add_service(GroupControllerServer::new(controller.clone()))
            .add_service(ControllerServer::new(controller))
            .add_service(SnapshotMetadataServer::new(snapshot_metadata));
    }
    if args.role != Role::Controller {
        let node = Node::new(&args.state_dir)?;
        let monitors =
            config.clusters.into_iter().map(|(id, cluster)| (id, cluster.monitors)).collect();
        let service = NodeService::new(
            Arc::new(node),
            args.node_id.unwrap_or_default(),
            args.max_volumes_per_node.unwrap_or(0),
            monitors,
            timeout,
        )
        .with_topology(topology_used.then(|| args.topology.into_iter().collect()))
        .with_alpha(args.enable_alpha);
        service.measure();
        routes = routes.add_service(NodeServer::new(service));
    }
    socket.serve(routes, GRACE, shutdown).await?;
    if let Some(sweeper) = sweeper {
        sweeper.rest(SETTLING).await;
    }
    Ok(())
}
