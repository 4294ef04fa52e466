//! Groups of real processes: this test binary starts itself once for each rank.

use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use ruminate_torch::Error;
use ruminate_torch::dist::{Bucket, ProcessGroup, Reduce, Reducer, Sharding, World, owners};
use ruminate_torch::optim;
use tch::{Device, Kind, Tensor};

const TASK: &str = "RUMINATE_TEST_TASK";
const TIMEOUT: &str = "RUMINATE_TEST_TIMEOUT";

fn start(task: &str, rank: usize, size: usize, port: u16, timeout: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "dist::rank", "--ignored", "--nocapture"])
        .envs([(TASK, task), ("MASTER_ADDR", "127.0.0.1"), ("OMP_NUM_THREADS", "1")])
        .envs([
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", size.to_string()),
            ("LOCAL_RANK", rank.to_string()),
        ])
        .envs([("MASTER_PORT", port.to_string()), (TIMEOUT, timeout.to_string())])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What each rank printed; all succeed.
fn run(task: &str, size: usize) -> Vec<String> {
    let port = port();
    let ranks: Vec<Child> = (0..size).map(|rank| start(task, rank, size, port, 60)).collect();
    ranks.into_iter().map(|child| text(&child.wait_with_output().unwrap(), true)).collect()
}

fn text(output: &Output, succeeds: bool) -> String {
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.success(), succeeds, "{text}");
    text
}

/// One rank; started by the tests of this file.
#[test]
#[ignore = "a process of the tests below"]
fn rank() {
    let task = std::env::var(TASK).unwrap();
    let timeout = Duration::from_secs(std::env::var(TIMEOUT).unwrap().parse().unwrap());
    let world = World::from_env().unwrap().unwrap();
    let group = match ProcessGroup::join(&world, Device::Cpu, timeout) {
        Ok(group) => group,
        Err(error) => panic!("{error}"),
    };
    let (rank, size) = (group.rank() as i64, group.size() as i64);
    match task.as_str() {
        "operations" => operations(&group, rank, size),
        "gradients" => gradients(group, rank, size),
        "gone" => gone(group, rank),
        "late" => {
            if rank == 1 {
                std::thread::sleep(timeout + Duration::from_secs(4));
            }
            report(group.barrier());
        }
        "killed" => {
            for step in 0.. {
                if rank == 1 && step == 3 {
                    std::process::abort();
                }
                report(group.barrier());
            }
        }
        other => panic!("{other}"),
    }
}

/// Ends this process with the error that another test wants to see.
fn report(result: Result<(), Error>) {
    if let Err(error) = result {
        let Error::Collective { rank, op, .. } = &error else { panic!("another error: {error}") };
        panic!("seen by {rank} in {op}: {error}");
    }
}

fn operations(group: &ProcessGroup, rank: i64, size: i64) {
    let of_rank = |rank: i64| (Tensor::arange(6, (Kind::Float, Device::Cpu)) + 10 * rank).view([2, 3]);
    let total = size * (size - 1) / 2;
    for (reduce, expected) in [
        (Reduce::Sum, of_rank(0) * size + 10 * total),
        (Reduce::Mean, of_rank(0) + 10.0 * total as f64 / size as f64),
        (Reduce::Max, of_rank(size - 1)),
    ] {
        let mut tensor = of_rank(rank);
        group.all_reduce(&mut tensor, reduce).unwrap();
        assert_eq!(tensor, expected, "{reduce:?}");
        // A view with gaps is reduced in place, and nothing beside it.
        let whole = of_rank(rank);
        group.all_reduce(&mut whole.narrow(1, 1, 2), reduce).unwrap();
        assert_eq!(whole.narrow(1, 1, 2), expected.narrow(1, 1, 2), "{reduce:?}");
        assert_eq!(whole.get(0).get(0), of_rank(rank).get(0).get(0));
        // Row r is the tensor plus r.
        let offsets = Tensor::arange(size, (Kind::Float, Device::Cpu)).view([size, 1, 1]);
        let row = group.reduce_scatter(&(of_rank(rank).unsqueeze(0) + offsets), reduce).unwrap();
        assert_eq!(row, &expected + if reduce == Reduce::Sum { size * rank } else { rank }, "{reduce:?}");
    }
    let from = size - 1;
    let mut tensor = of_rank(rank);
    group.broadcast(&mut tensor, from as usize).unwrap();
    assert_eq!(tensor, of_rank(from));
    let all: Vec<Tensor> = (0..size).map(of_rank).collect();
    assert_eq!(group.all_gather(&of_rank(rank)).unwrap(), Tensor::stack(&all, 0));
    let bytes = group.all_gather_bytes(&vec![rank as u8; 3 * rank as usize]).unwrap();
    assert_eq!(bytes, (0..size).map(|rank| vec![rank as u8; 3 * rank as usize]).collect::<Vec<_>>());
    assert_eq!(group.sum(&[rank, 1, i64::MAX / 8]).unwrap(), [total, size, size * (i64::MAX / 8)]);
    group.barrier().unwrap();
}

/// Several buckets, of which the first is full before the end of a backward pass; one parameter that nobody uses, one that only rank 0
/// does, another kind, and one that is frozen.
fn parameters() -> Vec<Tensor> {
    let shapes: [&[i64]; 6] = [&[2, 2], &[300, 2000], &[7], &[300, 1000], &[5], &[3]];
    let parameter = |(i, shape): (usize, &&[i64])| {
        let kind = if i == 4 { Kind::Double } else { Kind::Float };
        crate::parameter(shape, i as f64).detach().to_kind(kind).set_requires_grad(i != 5)
    };
    shapes.iter().enumerate().map(parameter).collect()
}

/// A gradient of `factor` everywhere: for the third parameter on rank 0 only, for the first nowhere.
fn loss(parameters: &[Tensor], rank: i64, factor: i64) -> Tensor {
    let used = parameters.iter().enumerate().filter(|(i, _)| *i != 0 && (*i != 2 || rank == 0));
    used.map(|(_, parameter)| (parameter * factor).sum(Kind::Double)).reduce(|a, b| a + b).unwrap()
}

fn expect_gradients(parameters: &[Tensor], owns: impl Fn(usize) -> bool, first: i64, all: i64) {
    for (i, parameter) in parameters.iter().enumerate() {
        let grad = parameter.grad();
        assert_eq!(grad.defined(), i != 0 && i != 5 && owns(i), "parameter {i}");
        if grad.defined() {
            let expected = if i == 2 { first } else { all };
            assert_eq!(grad, parameter.detach().ones_like() * expected, "parameter {i}");
        }
    }
}

fn gradients(group: ProcessGroup, rank: i64, size: i64) {
    let group = Rc::new(group);
    let ranks = size * (size + 1) / 2;
    for sharding in [Sharding::None, Sharding::Optimizer, Sharding::Gradients] {
        let parameters = parameters();
        let mut reducer = Reducer::new(Rc::clone(&group), &parameters, sharding).unwrap();
        let owners = owners(&[4, 600_000, 7, 300_000, 5, 0], size as usize);
        let owns = |i: usize| sharding == Sharding::None || owners[i] == rank as usize;
        assert!((0..6).all(|i| reducer.owns(i) == owns(i)));
        for step in 1..3 {
            optim::zero_grad(&parameters).unwrap();
            reducer.begin();
            loss(&parameters, rank, rank + step).backward();
            reducer.finish(true).unwrap();
            let offset = size * (step - 1);
            expect_gradients(&parameters, owns, step, ranks + offset);
        }
        // Accumulation: gradients of earlier passes travel with those of the last, or in rounds of their own.
        optim::zero_grad(&parameters).unwrap();
        let rounds = if sharding == Sharding::Gradients { 3 } else { 1 };
        for micro in 0..3 {
            let travels = micro + rounds >= 3;
            if travels {
                reducer.begin();
            }
            // The last rank has fewer micro-batches.
            if rank == 0 || micro < 2 {
                loss(&parameters, rank, 1).backward();
            }
            if travels {
                reducer.finish(micro == 2).unwrap();
                let held = parameters.iter().filter(|p| p.grad().defined()).count();
                assert!(micro == 2 || held == 0, "gradients stay after a round");
            }
        }
        expect_gradients(&parameters, owns, 3, 2 * size + 1);
        // Two backward passes after `begin`: the second comes after the first was sent.
        optim::zero_grad(&parameters).unwrap();
        reducer.begin();
        loss(&parameters, rank, 1).backward();
        if rank == 0 {
            loss(&parameters, rank, 10).backward();
        }
        reducer.finish(true).unwrap();
        expect_gradients(&parameters, owns, 11, size + 10);
        let own: Vec<Tensor> = (0..6).filter(|&i| owns(i)).map(|i| parameters[i].shallow_clone()).collect();
        let norm = reducer.clip_grad_norm(&own, 1.0).unwrap().double_value(&[]);
        // As libtorch reckons the norm of each, in float32.
        let square = |i: usize| {
            let value = if i == 2 { 11 } else { size + 10 };
            (parameters[i].detach().ones_like() * value).norm().double_value(&[]).powi(2)
        };
        let expected = [1, 2, 3, 4].map(square).iter().sum::<f64>().sqrt();
        assert!((norm / expected - 1.0).abs() < 1e-6, "{norm} instead of {expected}");
        let scaled =
            own.iter().filter(|p| p.grad().defined()).all(|p| p.grad().max().double_value(&[]) < 1.0);
        assert!(scaled);
        // Owners move what they own, and all have it then.
        tch::no_grad(|| {
            for (i, parameter) in parameters.iter().enumerate() {
                if owns(i) {
                    let _ = parameter.shallow_clone().fill_(i as f64 + 0.5);
                } else {
                    let _ = parameter.shallow_clone().fill_(-1.0);
                }
            }
        });
        reducer.publish().unwrap();
        for (i, parameter) in parameters.iter().enumerate().take(5) {
            assert_eq!(parameter.min().double_value(&[]), i as f64 + 0.5, "{sharding:?}");
            assert_eq!(parameter.max().double_value(&[]), i as f64 + 0.5);
        }
        let sent = match sharding {
            // Two steps, one with three passes, and one where a parameter came late and travels again.
            Sharding::None => 4 * 3_600_000 + 1_200_000,
            // After all of it, the parameters.
            Sharding::Optimizer => 5 * 3_600_000 + 1_200_000,
            Sharding::Gradients => 7 * 3_600_000 + 1_200_000,
        };
        assert_eq!(reducer.bytes() / 100_000 * 100_000, sent, "{sharding:?}");
        drop(reducer);
        // Nothing is watched any more.
        optim::zero_grad(&parameters).unwrap();
        loss(&parameters, rank, 2).backward();
        assert_eq!(parameters[1].grad().max().double_value(&[]), 2.0);
    }
}

fn gone(group: ProcessGroup, rank: i64) {
    let parameters = parameters();
    let mut reducer = Reducer::new(Rc::new(group), &parameters, Sharding::None).unwrap();
    reducer.begin();
    if rank == 1 {
        std::process::abort();
    }
    loss(&parameters, rank, 1).backward();
    report(reducer.finish(true));
}

#[test]
fn operations_reach_all_ranks() {
    for size in [1, 2, 4] {
        run("operations", size);
    }
}

#[test]
fn buckets_are_filled_from_the_last_parameter_on() {
    let float = |numbers: u64| Some((Kind::Float, numbers));
    let mebi = (1 << 20) / 4;
    let parameters =
        [float(30 * mebi), float(20 * mebi), None, float(5 * mebi), Some((Kind::Double, 1)), float(mebi)];
    let of = |sharding, ranks| {
        let buckets = Bucket::fill(&parameters, sharding, ranks);
        let parts = buckets.into_iter().map(|b| (b.members, b.owner, b.bytes >> 20));
        parts.collect::<Vec<_>>()
    };
    let all = [(vec![5], None, 1), (vec![3, 1], None, 25), (vec![0], None, 30), (vec![4], None, 0)];
    assert_eq!(of(Sharding::None, 2), all);
    // The largest belongs to the first rank; the others together are less.
    let parts =
        [(vec![5], Some(1), 1), (vec![3, 1], Some(1), 25), (vec![0], Some(0), 30), (vec![4], Some(1), 0)];
    assert_eq!(of(Sharding::Optimizer, 2), parts);
    assert!(Bucket::fill(&[], Sharding::None, 1).is_empty());
}

#[test]
fn gradients_are_summed_in_buckets() {
    for size in [1, 2, 3] {
        run("gradients", size);
    }
}

#[test]
fn a_rank_that_dies_within_a_backward_pass_is_an_error_of_the_others() {
    let (port, started) = (port(), Instant::now());
    let ranks = [0, 1].map(|rank| start("gone", rank, 2, port, 300));
    let [first, second] = ranks.map(|child| child.wait_with_output().unwrap());
    assert!(!second.status.success());
    let text = text(&first, false);
    assert!(text.contains("seen by 0 in all-reduce of gradients: rank 0 of 2: "), "{text}");
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_killed_rank_is_an_error_of_the_others_at_once() {
    let (port, started) = (port(), Instant::now());
    let ranks = [0, 1].map(|rank| start("killed", rank, 2, port, 300));
    let [first, second] = ranks.map(|child| child.wait_with_output().unwrap());
    assert!(!second.status.success());
    let text = text(&first, false);
    assert!(text.contains("seen by 0 in barrier: rank 0 of 2: barrier failed after"), "{text}");
    assert!(text.contains("if another rank ended"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn waiting_ends_with_the_timeout() {
    let (port, started) = (port(), Instant::now());
    let ranks = [0, 1].map(|rank| start("late", rank, 2, port, 3));
    let [first, _] = ranks.map(|child| child.wait_with_output().unwrap());
    let text = text(&first, false);
    assert!(text.contains("seen by 0 in barrier: rank 0 of 2: barrier failed after 3."), "{text}");
    assert!(text.contains("not all ranks came within the time-out"), "{text}");
    assert!(started.elapsed() < Duration::from_secs(60));
}

#[test]
fn a_rank_that_is_never_started_is_an_error() {
    for rank in [0, 1] {
        let started = Instant::now();
        let text = text(&start("barrier", rank, 2, port(), 2).wait_with_output().unwrap(), false);
        assert!(text.contains(&format!("rank {rank} of 2: joining the group failed after")), "{text}");
        assert!(started.elapsed() < Duration::from_secs(60));
    }
}

fn world(vars: &[(&str, &str)]) -> Result<Option<World>, Error> {
    World::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_string()))
}

#[test]
fn launchers_are_understood() {
    let expected = |rank, size, local_rank, addr: &str, port| {
        let master_addr = addr.into();
        Some(World { rank, size, local_rank, master_addr, master_port: port, attempt: None })
    };
    assert_eq!(world(&[]).unwrap(), None);
    // A Slurm batch script is no step, and a single process.
    assert_eq!(world(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_JOB_ID", "7")]).unwrap(), None);
    let torchrun = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "gpu1"),
        ("MASTER_PORT", "29500"),
        ("SLURM_PROCID", "0"),
        ("SLURM_STEP_NUM_TASKS", "1"),
    ];
    assert_eq!(world(&torchrun).unwrap(), expected(3, 4, 1, "gpu1", 29500));
    // It listens itself, and starts ranks anew.
    let elastic = |count| {
        let more = [("TORCHELASTIC_USE_AGENT_STORE", "True"), ("TORCHELASTIC_RESTART_COUNT", count)];
        world(&[&torchrun[..], &more].concat())
    };
    assert_eq!(elastic("2").unwrap().unwrap().attempt, Some(2));
    assert!(elastic("-1").is_err());
    let kubernetes =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "job-master-0"), ("MASTER_PORT", "23456")];
    assert_eq!(world(&kubernetes).unwrap(), expected(1, 2, 0, "job-master-0", 23456));
    for (list, host) in [
        ("gpu[07-10,12],cpu3", "gpu07"),
        ("a,b", "a"),
        ("node-3", "node-3"),
        ("n[2,4].site", "n2.site"),
        ("rack[1-2]n[03-04]", "rack1n03"),
    ] {
        let slurm = [
            ("SLURM_PROCID", "2"),
            ("SLURM_STEP_NUM_TASKS", "3"),
            ("SLURM_LOCALID", "2"),
            ("SLURM_STEP_NODELIST", list),
            ("SLURM_JOB_ID", "30001"),
        ];
        assert_eq!(world(&slurm).unwrap(), expected(2, 3, 2, host, 15_001), "{list}");
    }
}

#[test]
fn nonsense_in_the_environment_names_the_variable() {
    let good = [("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")];
    for (name, value) in [
        ("RANK", "2"),
        ("RANK", "-1"),
        ("RANK", ""),
        ("WORLD_SIZE", "two"),
        ("WORLD_SIZE", ""),
        ("MASTER_ADDR", " "),
        ("MASTER_PORT", "0"),
        ("MASTER_PORT", "65536"),
        ("MASTER_PORT", ""),
    ] {
        let vars = good.map(|(n, v)| if n == name { (n, value) } else { (n, v) });
        match world(&vars) {
            Err(Error::World { variable, .. }) => assert_eq!(variable, name, "{value:?}"),
            other => panic!("{name}={value:?}: {other:?}"),
        }
    }
    let slurm = [("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_JOB_ID", "1")];
    for list in ["", "[1-2", "n[]", ","] {
        let vars: Vec<_> = slurm.into_iter().chain([("SLURM_STEP_NODELIST", list)]).collect();
        assert!(matches!(world(&vars), Err(Error::World { variable: "SLURM_STEP_NODELIST", .. })), "{list}");
    }
}
