//! Blocks of tensors under [`ruminate_torch::keep_freed_memory`].

use ruminate_torch::keep_freed_memory;
use tch::{Device, Kind, Tensor};

fn block(bytes: i64) -> Tensor {
    Tensor::ones([bytes], (Kind::Uint8, Device::Cpu))
}

#[test]
fn blocks_are_aligned_and_hold_what_was_written() {
    keep_freed_memory();
    for bytes in [1, 63, 64, 1000, 1 << 20] {
        let tensor = block(bytes);
        assert_eq!(tensor.data_ptr() as usize % 64, 0, "{bytes} bytes");
        assert_eq!(tensor.sum(Kind::Int64).int64_value(&[]), bytes);
    }
    assert_eq!(block(0).numel(), 0);
    // A block that grows takes along what it holds.
    let mut tensor = Tensor::from_slice(&[1i64, 2, 3]);
    let _ = tensor.resize_([1000]);
    assert_eq!(Vec::<i64>::try_from(tensor.narrow(0, 0, 3)).unwrap(), [1, 2, 3]);
    assert!(Tensor::f_empty([i64::MAX], (Kind::Uint8, Device::Cpu)).is_err());
}

/// How a child process of [`alone`] is told that it is one.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const CHILD: &str = "RUMINATE_TEST_MEMORY";

/// Whether this process was started for `test` alone. If not, starts one in which no other test uses memory, and fails
/// as it does.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn alone(test: &str) -> bool {
    if std::env::var_os(CHILD).is_some() {
        return true;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && out.contains("1 passed"), "{out}{err}");
    false
}

/// What libtorch asks of the C library by itself leaves holes that the next tensor of the same size does not fit.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn what_a_tensor_leaves_serves_the_next_of_its_size() {
    if !alone("memory::what_a_tensor_leaves_serves_the_next_of_its_size") {
        return;
    }
    keep_freed_memory();
    let mut tensors: Vec<Option<Tensor>> = (0..16).map(|_| Some(block(3 << 20))).collect();
    let address = |tensor: &Option<Tensor>| tensor.as_ref().map(|t| t.data_ptr() as usize);
    let mut freed: Vec<usize> = tensors.iter().step_by(2).filter_map(address).collect();
    tensors.iter_mut().step_by(2).for_each(|tensor| *tensor = None);
    let again: Vec<Option<Tensor>> = freed.iter().map(|_| Some(block(3 << 20))).collect();
    let mut taken: Vec<usize> = again.iter().filter_map(address).collect();
    freed.sort_unstable();
    taken.sort_unstable();
    assert_eq!(taken, freed);
}

/// MKL would keep what its products work in.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn a_product_leaves_nothing_but_its_result() {
    /// As in `malloc.h`.
    #[repr(C)]
    struct Mallinfo {
        arena: usize,
        counts: [usize; 3],
        mapped: usize,
        unused: [usize; 2],
        used: usize,
        rest: [usize; 2],
    }
    unsafe extern "C" {
        fn mallinfo2() -> Mallinfo;
    }
    if !alone("memory::a_product_leaves_nothing_but_its_result") {
        return;
    }
    keep_freed_memory();
    // SAFETY: the function counts, and its result has ten words.
    let all = || unsafe { mallinfo2() };
    let used = || all().used + all().mapped;
    let product = |n: i64| {
        let x = Tensor::ones([n, n], (Kind::Float, Device::Cpu));
        x.matmul(&x).double_value(&[0, 0])
    };
    // The first one starts threads.
    assert_eq!(product(64), 64.0);
    let before = used();
    assert_eq!(product(1024), 1024.0);
    let kept = used().saturating_sub(before);
    assert!(kept < 1 << 20, "{kept} bytes");
}
