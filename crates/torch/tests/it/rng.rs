//! Generator states.

use ruminate_torch::{Error, rng};
use tch::{Device, Kind, Tensor};

use crate::{alone, bits};

fn draw() -> Vec<u32> {
    let normal = Tensor::randn([5], (Kind::Float, Device::Cpu));
    let uniform = Tensor::rand([3], (Kind::Float, Device::Cpu));
    let dropped = Tensor::ones([64], (Kind::Float, Device::Cpu)).dropout(0.5, true);
    bits(&Tensor::cat(&[normal, uniform, dropped], 0))
}

#[test]
fn a_state_brings_back_its_numbers() {
    let _alone = alone();
    tch::manual_seed(7);
    // In the middle of a pair: the second half of a normal draw is kept in the state.
    let _ = Tensor::randn([1], (Kind::Double, Device::Cpu));
    let state = rng::state(Device::Cpu).unwrap();
    assert_eq!(state.kind(), Kind::Uint8);
    let first = draw();
    let second = draw();
    assert_ne!(first, second);
    rng::set_state(Device::Cpu, &state).unwrap();
    assert_eq!((draw(), draw()), (first.clone(), second));
    // The state is a snapshot, also for a copy of its bytes, as it comes out of a file.
    tch::manual_seed(8);
    rng::set_state(Device::Cpu, &state.copy()).unwrap();
    assert_eq!(draw(), first);
}

#[test]
fn refusals_are_errors_in_libtorchs_words() {
    let _alone = alone();
    let good = rng::state(Device::Cpu).unwrap();
    let words = |result: ruminate_torch::Result<()>| match result {
        Err(Error::Libtorch { op, message }) => {
            assert_eq!(op, "set generator state");
            message
        }
        other => panic!("{other:?}"),
    };
    let message = words(rng::set_state(Device::Cpu, &good.to_kind(Kind::Float)));
    assert!(message.contains("ByteTensor"), "{message}");
    let message = words(rng::set_state(Device::Cpu, &good.narrow(0, 0, 10)));
    assert!(message.contains("size") && !message.contains("frame #"), "{message}");
    // A refused state has not been put in half.
    assert_eq!(rng::state(Device::Cpu).unwrap(), good);

    let far = Device::Cuda(99);
    assert!(matches!(rng::state(far), Err(Error::Libtorch { op: "generator state", .. })));
    assert!(matches!(rng::set_state(far, &good), Err(Error::Libtorch { .. })));
    let error = rng::state(Device::Mps).unwrap_err().to_string();
    assert!(error.contains("Mps") && error.contains("use the CPU or CUDA"), "{error}");
}

#[test]
fn a_seed_gives_what_it_gives_everywhere() {
    let _alone = alone();
    tch::manual_seed(11);
    let expected = draw();
    rng::seed(Device::Cpu, 11).unwrap();
    assert_eq!(draw(), expected);
}
