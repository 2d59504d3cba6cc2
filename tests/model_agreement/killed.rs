//! A process killed inside librbd leaves one of the states in which the model can leave the same
//! call, and the calls that follow are answered alike.
//!
//! The process is the `rbd` program. The lab's OSD is slowed down, so that a kill at a random time
//! hits between any two writes; all states that the model knows for the call are computed, and what
//! is found must be one of them.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cinderblock::rbd::{CloneFormat, Cluster, Features};

use super::common::random::Random;
use super::common::{OwnLab, wait_until};
use super::graph::Graph;
use super::operation::{Action, At, ImageAction, Key, ORDER, Operation, Target};
use super::pools::Pools;
use super::side::Side;

/// Kills in a normal run.
const KILLS: u64 = 8;

/// What the OSD waits before each operation, in seconds.
const DELAY: &str = "0.005";

/// A call that is killed.
struct Case {
    /// What there is when it begins.
    before: Vec<Operation>,
    /// The arguments of `rbd`; `{}` stands for the pool, `{id}` for the first image.
    command: &'static str,
    /// The same call for the model.
    call: Operation,
    /// What is tried afterwards.
    after: Vec<Operation>,
}

/// What is there after the kill, how the calls after it were answered, and what is there then: in
/// words.
type Outcome = String;

#[test]
fn killed_calls_leave_what_the_model_says() {
    let lab = OwnLab::up();
    let cluster = lab.connect();
    set(&*cluster, "osd_client_watch_timeout", "2");
    set(&*cluster, "osd_debug_inject_dispatch_delay_duration", DELAY);
    let seed = super::number("AGREEMENT_SEED").unwrap_or_else(Random::seed_of_now);
    let mut random = Random::new(seed);
    let cases = cases();
    let first = usize::try_from(random.below(cases.len() as u64)).unwrap();
    for case in cases.iter().cycle().skip(first).take(super::count("AGREEMENT_KILLS", KILLS)) {
        let took = duration(&lab, case);
        // A little longer than it takes, to hit the end too.
        let moment = took.mul_f64(random.fraction() * 1.1);
        println!("rbd {} killed after {moment:?} of {took:?}", case.command);
        check(&lab, case, moment);
    }
}

fn check(lab: &OwnLab, case: &Case, moment: Duration) {
    let cluster = lab.connect();
    let pools = Pools::new(&*cluster);
    let mut real = Side::new(&*cluster, &pools);
    case.before.iter().for_each(|operation| assert_eq!(real.run(operation), "()", "{operation:?}"));
    {
        let _slow = Slow::new(&*cluster);
        let mut process = spawn(lab, &pools, &real, case);
        std::thread::sleep(moment);
        process.kill().unwrap();
        process.wait().unwrap();
    }
    wait_until("the watches of the killed process have expired", || {
        let watchers = real.watchers();
        if watchers == 0 { Ok(()) } else { Err(watchers) }
    });
    let found = outcome(&mut real, case);
    let expected = model_outcomes(&pools, case);
    assert!(
        expected.contains(&found),
        "`rbd {}` killed after {moment:?} left what the model does not know:\n{found}\nIt knows:\n{}",
        case.command,
        expected.join("\nor\n")
    );
}

/// Every outcome the model knows.
fn model_outcomes(pools: &Pools<'_>, case: &Case) -> Vec<Outcome> {
    let run = |fault| {
        let model = pools.model();
        let mut side = Side::new(&*model.connect().cluster(), pools);
        case.before
            .iter()
            .for_each(|operation| assert_eq!(side.run(operation), "()", "{operation:?}"));
        let victim = model.connect();
        if let Some((call, fault)) = fault {
            victim.inject(call, fault);
        }
        side.over(&*victim.cluster(), pools).run(&case.call);
        (outcome(&mut side, case), victim.crash_points())
    };
    let (whole, points) = run(None);
    assert!(points.len() > 1, "{:?} has no steps", case.call);
    let mut outcomes = vec![whole];
    for point in points {
        let (outcome, _) = run(Some(point));
        if !outcomes.contains(&outcome) {
            outcomes.push(outcome);
        }
    }
    outcomes
}

fn outcome(side: &mut Side, case: &Case) -> Outcome {
    side.learn();
    let mut lines = words(&side.graph());
    for operation in &case.after {
        lines.push(format!("then {:?}: {}", operation.action, side.run(operation)));
    }
    lines.extend(words(&side.graph()));
    lines.join("\n")
}

fn words(graph: &Graph) -> Vec<String> {
    graph.iter().map(|(place, lines)| format!("  {place}: {}", lines.join("; "))).collect()
}

/// How long the call takes on the slow OSD.
fn duration(lab: &OwnLab, case: &Case) -> Duration {
    let cluster = lab.connect();
    let pools = Pools::new(&*cluster);
    let mut real = Side::new(&*cluster, &pools);
    case.before.iter().for_each(|operation| assert_eq!(real.run(operation), "()", "{operation:?}"));
    let _slow = Slow::new(&*cluster);
    let began = Instant::now();
    let status = spawn(lab, &pools, &real, case).wait().unwrap();
    assert!(status.success(), "rbd {}: {status}", case.command);
    began.elapsed()
}

fn spawn(lab: &OwnLab, pools: &Pools<'_>, side: &Side, case: &Case) -> Child {
    let id = side.names.id(0);
    let fill = |argument: &str| argument.replace("{}", pools.names()[0]).replace("{id}", &id);
    let mut command = Command::new("rbd");
    command.arg("--conf").arg(&lab.ceph_conf).arg("--id").arg(&lab.user);
    command.args(case.command.split(' ').map(fill));
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// An OSD that waits before each operation, until this is dropped.
struct Slow<'a>(&'a dyn Cluster);

impl Slow<'_> {
    const PROBABILITY: &'static str = "osd_debug_inject_dispatch_delay_probability";

    fn new(cluster: &dyn Cluster) -> Slow<'_> {
        set(cluster, Slow::PROBABILITY, "1");
        Slow(cluster)
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        set(self.0, Slow::PROBABILITY, "0");
    }
}

/// Sets an option of the OSD.
fn set(cluster: &dyn Cluster, name: &str, value: &str) {
    let command =
        format!(r#"{{"prefix":"config set","who":"osd","name":"{name}","value":"{value}"}}"#);
    cluster.monitor_command(&command).unwrap();
}

fn operation(action: Action) -> Operation {
    Operation { pool: 0, action }
}

fn create(name: &'static str, features: Features) -> Operation {
    operation(Action::Create { name, size: 5 << ORDER, order: ORDER, features })
}

fn clone(name: &'static str, format: CloneFormat) -> Operation {
    operation(Action::Clone {
        parent_pool: 0,
        parent: "a",
        snapshot: "s",
        name,
        format,
        features: None,
    })
}

fn remove(name: &'static str) -> Operation {
    operation(Action::Remove { name })
}

fn rename(from: &'static str, to: &'static str) -> Operation {
    operation(Action::Rename { from, to })
}

fn trash_move(name: &'static str) -> Operation {
    operation(Action::TrashMove { name, delay: 0 })
}

fn on(name: &'static str, action: ImageAction) -> Operation {
    operation(Action::On { target: Target::Opened(Key::Name(name), false), action })
}

fn cut(name: &'static str, snapshot: &'static str) -> Operation {
    on(name, ImageAction::CreateSnapshot { name: snapshot })
}

fn drop_snapshot(name: &'static str, snapshot: &'static str) -> Operation {
    on(name, ImageAction::RemoveSnapshot { name: snapshot })
}

fn drop_parked(name: &'static str) -> Operation {
    let first: At = Some(0);
    on(name, ImageAction::RemoveSnapshotById { at: first })
}

fn unprotect(name: &'static str) -> Operation {
    on(name, ImageAction::Unprotect { name: "s" })
}

/// An image `a` with data and a snapshot `s`.
fn parent() -> Vec<Operation> {
    parent_with(Features::DEFAULT)
}

fn parent_with(features: Features) -> Vec<Operation> {
    let write = |offset| on("a", ImageAction::Write { offset, length: 10_000, byte: 1 });
    vec![create("a", features), write(5000), write(3 << ORDER), cut("a", "s")]
}

fn protected_parent() -> Vec<Operation> {
    [parent(), vec![on("a", ImageAction::Protect { name: "s" })]].concat()
}

/// A clone `b` of `a@s`, whose snapshot was removed since: it is parked.
fn clone_of_a_parked_snapshot() -> Vec<Operation> {
    [parent(), vec![clone("b", CloneFormat::V2), drop_snapshot("a", "s")]].concat()
}

fn format_1_clone() -> Vec<Operation> {
    [protected_parent(), vec![clone("b", CloneFormat::V1)]].concat()
}

fn case(
    before: Vec<Operation>,
    command: &'static str,
    call: Operation,
    after: Vec<Operation>,
) -> Case {
    Case { before, command, call, after }
}

fn cases() -> Vec<Case> {
    let default = Features::DEFAULT;
    let shallow = Features(default.0 & !Features::DEEP_FLATTEN.0);
    let flatten = || on("b", ImageAction::Flatten);
    let again = |call: &Operation, undo: Operation| vec![call.clone(), undo, call.clone()];
    let create_n = create("c", default);
    let clone_1 = clone("c", CloneFormat::V1);
    let clone_2 = clone("c", CloneFormat::V2);
    vec![
        case(
            vec![],
            "create --size 320K --object-size 64K {}/c",
            create_n.clone(),
            again(&create_n, remove("c")),
        ),
        case(
            parent(),
            "clone --rbd-default-clone-format 2 {}/a@s {}/c",
            clone_2.clone(),
            [again(&clone_2, remove("c")), vec![drop_snapshot("a", "s")]].concat(),
        ),
        case(
            protected_parent(),
            "clone --rbd-default-clone-format 1 {}/a@s {}/c",
            clone_1.clone(),
            [vec![unprotect("a")], again(&clone_1, remove("c")), vec![unprotect("a")]].concat(),
        ),
        case(
            vec![create("a", default)],
            "rm {}/a",
            remove("a"),
            vec![remove("a"), create("a", default)],
        ),
        case(
            clone_of_a_parked_snapshot(),
            "rm {}/b",
            remove("b"),
            vec![remove("a"), remove("b"), remove("a")],
        ),
        case(
            format_1_clone(),
            "rm {}/b",
            remove("b"),
            vec![unprotect("a"), remove("b"), unprotect("a")],
        ),
        case(
            vec![create("a", default)],
            "rename {}/a {}/b",
            rename("a", "b"),
            vec![rename("a", "b"), rename("a", "b"), remove("b")],
        ),
        case(
            vec![create("a", default)],
            "rename {}/a {}/b",
            rename("a", "b"),
            vec![remove("a"), remove("b")],
        ),
        case(
            vec![create("a", default)],
            "snap create {}/a@s",
            cut("a", "s"),
            vec![cut("a", "s"), drop_snapshot("a", "s"), remove("a")],
        ),
        case(
            parent(),
            "snap rm {}/a@s",
            drop_snapshot("a", "s"),
            vec![drop_snapshot("a", "s"), remove("a"), drop_parked("a"), remove("a")],
        ),
        case(
            protected_parent(),
            "snap unprotect {}/a@s",
            unprotect("a"),
            vec![
                clone("c", CloneFormat::V1),
                drop_snapshot("a", "s"),
                on("a", ImageAction::Protect { name: "s" }),
                unprotect("a"),
                unprotect("a"),
            ],
        ),
        case(
            [clone_of_a_parked_snapshot(), vec![cut("b", "t")]].concat(),
            "flatten --no-progress {}/b",
            flatten(),
            vec![flatten(), drop_parked("a"), remove("a"), drop_snapshot("b", "t"), remove("b")],
        ),
        case(
            format_1_clone(),
            "flatten --no-progress {}/b",
            flatten(),
            vec![
                unprotect("a"),
                flatten(),
                unprotect("a"),
                flatten(),
                drop_snapshot("a", "s"),
                remove("b"),
            ],
        ),
        case(
            [parent_with(shallow), vec![clone("b", CloneFormat::V2), cut("b", "t"), flatten()]]
                .concat(),
            "snap rm {}/b@t",
            drop_snapshot("b", "t"),
            vec![drop_snapshot("a", "s"), drop_parked("b"), remove("a"), remove("b")],
        ),
        case(
            parent(),
            "trash mv {}/a",
            trash_move("a"),
            vec![
                operation(Action::TrashRemove { image: 0, force: true }),
                trash_move("a"),
                operation(Action::TrashRestore { image: 0, name: "d" }),
                drop_snapshot("d", "s"),
                remove("d"),
            ],
        ),
        case(
            vec![create("a", default), trash_move("a")],
            "trash restore --image b {}/{id}",
            operation(Action::TrashRestore { image: 0, name: "b" }),
            vec![
                remove("b"),
                operation(Action::TrashRemove { image: 0, force: true }),
                operation(Action::TrashRestore { image: 0, name: "c" }),
                remove("b"),
                remove("c"),
            ],
        ),
        case(
            vec![create("a", default), trash_move("a")],
            "trash rm {}/{id}",
            operation(Action::TrashRemove { image: 0, force: false }),
            vec![
                operation(Action::TrashRestore { image: 0, name: "c" }),
                operation(Action::TrashRemove { image: 0, force: false }),
            ],
        ),
        case(
            vec![create("a", default)],
            "resize --no-progress --allow-shrink --size 100K {}/a",
            on("a", ImageAction::Resize { size: 100 << 10, allow_shrink: true }),
            vec![],
        ),
    ]
}
