//! Work that real processes divide gives what one process finds.

use std::time::Duration;

use approx::assert_relative_eq;
use ruminate_algorithms::crystal::ImitationConfig;
use ruminate_algorithms::dpo::precompute_cached;
use ruminate_algorithms::rwr::Divided;
use ruminate_algorithms::{Algorithm, Collective, Curriculum, Evaluation, NullObserver, Result};
use ruminate_datasets::rise::{Answerer, Ask, Failed, Reply, Stopped};
use ruminate_models::T5;
use tch::Device;

use super::{Setup, finish, start};
use crate::support::{alone, model};

/// The same validation, divided and not.
fn same<C: Curriculum<T5>>(collective: &Collective, policy: &T5, new: impl Fn() -> C) {
    let validated = |collective: Collective| -> Evaluation {
        let mut curriculum = new();
        curriculum.distribute(&collective).unwrap();
        curriculum.evaluate(policy, 3, &mut NullObserver).unwrap()
    };
    assert_eq!(validated(collective.clone()), validated(Collective::default()));
}

fn ask(row: usize) -> Ask {
    Ask { row, turn: 0, attempt: 0, messages: vec![], samples: 1, seed: 0 }
}

/// One rank; started by the test below.
#[test]
#[ignore = "a process of the test below"]
fn rank() {
    tch::set_num_threads(1);
    let collective = Collective::from_env(Device::Cpu, Duration::from_secs(60)).unwrap();
    let (rank, size, policy) = (collective.rank(), collective.size(), model(0.0, 1));

    for count in [0, 1, size, 2 * size + 1] {
        let squares = collective.map(count, |mine| {
            assert!(mine.iter().all(|i| i % size == rank));
            Ok(mine.iter().map(|i| i * i).collect())
        });
        assert_eq!(squares.unwrap(), (0..count).map(|i| i * i).collect::<Vec<_>>());
    }
    assert_eq!(collective.first(|| Result::Ok(rank)).unwrap(), 0);
    assert_eq!(collective.first(|| Result::Ok(None::<usize>)).unwrap(), None);
    assert!(collective.any(rank == 1).unwrap() && !collective.any(false).unwrap());
    assert_eq!(collective.is_main_process(), rank == 0);
    // All of them notice that one has not done its work.
    let short = collective.map(size, |_| Ok(if rank == 1 { vec![] } else { vec![1] }));
    assert!(short.unwrap_err().to_string().contains("one result for each"));

    let config = ImitationConfig { eval_batch_size: 50, ..ImitationConfig::default() };
    same(&collective, &policy, || crate::crystal::imitation(config.clone()));
    same(&collective, &policy, crate::mario::rationales);
    same(&collective, &policy, crate::mario::options);
    same(&collective, &policy, || crate::supervised::rewarded(0.0));
    let student = crate::tinythinker::model(1);
    same(&collective, &student, || crate::tinythinker::acquisition(1));

    let mut verifier = crate::mario::verifier();
    let whole = verifier.evaluate(0, &mut NullObserver).unwrap();
    verifier.distribute(&collective).unwrap();
    assert_eq!(verifier.evaluate(0, &mut NullObserver).unwrap(), whole);

    let ppo = crate::ppo::of_ranks(model(0.0, 1), 8).unwrap();
    let measured =
        |collective: &Collective| ppo.measure_rewards(Some(2), collective, &mut NullObserver).unwrap();
    assert_eq!(measured(&collective), measured(&Collective::default()));

    let asks: Vec<Ask> = (0..5).map(ask).collect();
    let answerer = |asks: &[Ask]| -> std::result::Result<Vec<Reply>, Failed> {
        assert!(!asks.is_empty());
        let reply = |ask: &Ask| match ask.row {
            2 => Reply::Blocked("no".into()),
            row => Reply::Texts(vec![format!("{rank} answers {row}")]),
        };
        Ok(asks.iter().map(reply).collect())
    };
    let expected = |answering: usize| -> Vec<Reply> {
        let reply = |row: usize| match row {
            2 => Reply::Blocked("no".into()),
            _ => Reply::Texts(vec![format!("{} answers {row}", row % answering)]),
        };
        (0..5).map(reply).collect()
    };
    assert_eq!(Divided::new(&answerer, &collective).answer(&asks).unwrap(), expected(size));
    assert_eq!(Divided::by_first(&answerer, &collective).answer(&asks).unwrap(), expected(1));
    // One that is asked to stop stops all.
    let stops = |asks: &[Ask]| if rank == 1 { Err(Stopped.into()) } else { answerer(asks) };
    assert!(Divided::new(&stops, &collective).answer(&asks).unwrap_err().is::<Stopped>());

    let folder = std::env::var("RUMINATE_TEST_FOLDER").unwrap();
    let file = std::path::Path::new(&folder).join("logps.json");
    let [mut divided, mut whole] = [(); 2].map(|()| crate::dpo::pairs(11));
    let precompute = |pairs: &mut [_]| precompute_cached(&policy, pairs, 1.0, 4, &file, &collective).unwrap();
    assert!(!precompute(&mut divided));
    // The file is there when the next question is asked, and serves all.
    assert!(precompute(&mut whole));
    assert_eq!(divided, whole);
    ruminate_algorithms::dpo::precompute(&policy, &mut whole, 1.0, 4).unwrap();
    for (a, b) in divided.iter().zip(&whole) {
        for (a, b) in a.reference.unwrap().into_iter().zip(b.reference.unwrap()) {
            assert_relative_eq!(a, b, epsilon = 1e-4, max_relative = 1e-4);
        }
    }
}

#[test]
fn what_is_divided_gives_what_one_process_finds() {
    let _alone = alone();
    for size in [2, 3] {
        let folder = tempfile::tempdir().unwrap();
        for (succeeded, text) in
            finish(start("distributed::divided::rank", &Setup::default(), folder.path(), size))
        {
            assert!(succeeded, "{text}");
        }
    }
}
