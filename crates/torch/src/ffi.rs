//! The C ABI of `shim/shim.h` and the safe calls around it.

use std::ffi::{CStr, c_char, c_int, c_void};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::without_trace;
use crate::{Error, Result};

pub(crate) type TensorPtr = *const C_tensor;

/// The shim's group of processes.
#[repr(C)]
pub(crate) struct Group {
    _opaque: [u8; 0],
}

/// The shim's summing of gradients.
#[repr(C)]
pub(crate) struct Reducer {
    _opaque: [u8; 0],
}

/// The shim's recorded work.
#[repr(C)]
pub(crate) struct Graph {
    _opaque: [u8; 0],
}

/// A Rust closure as the shim calls it.
pub(crate) type Body = unsafe extern "C" fn(
    closure: *mut c_void,
    inputs: *const *mut C_tensor,
    count: usize,
    out: *mut *mut C_tensor,
    message: *mut c_void,
) -> c_int;

unsafe extern "C" {
    pub(crate) fn ruminate_free_message(message: *mut c_char);
    pub(crate) fn ruminate_keep_freed_memory();
    pub(crate) fn ruminate_cpu_levels(
        detected: *mut c_int,
        used: *mut c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_set_cpu_level(level: c_int, error: *mut *mut c_char) -> c_int;
    pub(crate) fn ruminate_onednn_refusal(out: *mut *mut c_char, error: *mut *mut c_char) -> c_int;
    pub(crate) fn ruminate_choose(
        logits: TensorPtr,
        allowed: TensorPtr,
        uniform: TensorPtr,
        temperature: f64,
        top_k: i64,
        top_p: f64,
        tokens: *mut *mut C_tensor,
        log_probs: *mut *mut C_tensor,
        sampling_log_probs: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_rms_norm(
        x: TensorPtr,
        weight: TensorPtr,
        eps: f64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_gate(
        gate: TensorPtr,
        up: TensorPtr,
        gelu: c_int,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_rope(
        x: TensorPtr,
        cos: TensorPtr,
        sin: TensorPtr,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_attention(
        queries: TensorPtr,
        keys: TensorPtr,
        values: TensorPtr,
        bias: TensorPtr,
        scale: f64,
        dropout: f64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_build_info(out: *mut *mut c_char, error: *mut *mut c_char) -> c_int;
    pub(crate) fn ruminate_adam_step(
        params: *const TensorPtr,
        exp_avgs: *const TensorPtr,
        exp_avg_sqs: *const TensorPtr,
        steps: *const TensorPtr,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        decoupled: c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_adafactor_step(
        params: *const TensorPtr,
        states: *const TensorPtr,
        count: usize,
        rates: *const f64,
        decays: *const f64,
        eps: f64,
        least_scale: f64,
        clip: f64,
        beta1: f64,
        weight_decay: f64,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_clear_grads(
        params: *const TensorPtr,
        count: usize,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_scale_grads(
        params: *const TensorPtr,
        count: usize,
        norm: TensorPtr,
        max_norm: f64,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_clip_grad_norm(
        params: *const TensorPtr,
        count: usize,
        max_norm: f64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_generator_state(
        device_index: c_int,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_set_generator_state(
        device_index: c_int,
        state: TensorPtr,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_cross_entropy(
        hidden: TensorPtr,
        weight: TensorPtr,
        targets: TensorPtr,
        scale: f64,
        chunk: i64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_log_probs(
        hidden: TensorPtr,
        weight: TensorPtr,
        targets: TensorPtr,
        scale: f64,
        chunk: i64,
        with_entropy: c_int,
        log_probs: *mut *mut C_tensor,
        entropy: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_linear(
        x: TensorPtr,
        weight: TensorPtr,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_fused_linear(
        x: TensorPtr,
        norm: TensorPtr,
        eps: f64,
        weights: *const TensorPtr,
        count: usize,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_matmul(
        a: TensorPtr,
        b: TensorPtr,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_pack(
        weights: *const TensorPtr,
        count: usize,
        out: *mut *mut C_tensor,
        blocks: *mut c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_packed_linear(
        x: TensorPtr,
        blocks: TensorPtr,
        outputs: i64,
        before: c_int,
        norm: TensorPtr,
        eps: f64,
        residual: TensorPtr,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_decode_attention(
        queries: TensorPtr,
        keys: *const TensorPtr,
        values: *const TensorPtr,
        count: usize,
        bias: TensorPtr,
        scale: f64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_append_kv(
        states: TensorPtr,
        cos: TensorPtr,
        sin: TensorPtr,
        keys: TensorPtr,
        values: TensorPtr,
        position: i64,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_dropout(
        x: TensorPtr,
        rate: f64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_top_p(
        logits: TensorPtr,
        p: f64,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_graph_begin(device: c_int, out: *mut *mut Graph, error: *mut *mut c_char)
    -> c_int;
    pub(crate) fn ruminate_graph_end(graph: *mut Graph, error: *mut *mut c_char) -> c_int;
    pub(crate) fn ruminate_graph_replay(graph: *mut Graph, error: *mut *mut c_char) -> c_int;
    pub(crate) fn ruminate_graph_free(graph: *mut Graph);
    pub(crate) fn ruminate_kernels_on() -> u32;
    pub(crate) fn ruminate_turn_on_kernels(kernels: u32, error: *mut *mut c_char) -> c_int;
    pub(crate) fn ruminate_compile_kernel(
        kernel: c_int,
        architecture: *const c_char,
        bytes: *mut i64,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_set_message(message: *mut c_void, text: *const u8, length: usize);
    pub(crate) fn ruminate_checkpoint(
        inputs: *const TensorPtr,
        count: usize,
        closure: *mut c_void,
        call: Body,
        drop: unsafe extern "C" fn(*mut c_void),
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_seed_generator(device_index: c_int, seed: u64, error: *mut *mut c_char) -> c_int;
    pub(crate) fn ruminate_swap_autocast(
        cuda: c_int,
        enabled: *mut c_int,
        kind: *mut c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_group_join(
        host: *const c_char,
        port: u16,
        serve: c_int,
        prefix: *const c_char,
        rank: c_int,
        size: c_int,
        device_index: c_int,
        timeout_ms: i64,
        out: *mut *mut Group,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_group_free(group: *mut Group);
    pub(crate) fn ruminate_all_reduce(
        group: *mut Group,
        tensor: TensorPtr,
        op: c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_broadcast(
        group: *mut Group,
        tensor: TensorPtr,
        from: c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_all_gather(
        group: *mut Group,
        tensor: TensorPtr,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_reduce_scatter(
        group: *mut Group,
        tensor: TensorPtr,
        op: c_int,
        out: *mut *mut C_tensor,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_barrier(group: *mut Group, error: *mut *mut c_char) -> c_int;
    pub(crate) fn ruminate_reducer_new(
        group: *mut Group,
        params: *const TensorPtr,
        count: usize,
        members: *const usize,
        sizes: *const usize,
        owners: *const c_int,
        buckets: usize,
        in_flight: usize,
        out: *mut *mut Reducer,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_reducer_free(reducer: *mut Reducer);
    pub(crate) fn ruminate_reducer_begin(reducer: *mut Reducer);
    pub(crate) fn ruminate_reducer_finish(
        reducer: *mut Reducer,
        last: c_int,
        error: *mut *mut c_char,
    ) -> c_int;
    pub(crate) fn ruminate_reducer_publish(reducer: *mut Reducer, error: *mut *mut c_char) -> c_int;
    pub(crate) fn ruminate_reducer_bytes(reducer: *const Reducer) -> i64;
}

/// Borrowed pointers for a call; they live as long as the tensors do.
pub(crate) fn pointers<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<TensorPtr> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}

/// Runs a shim function and turns its code and message into a `Result`.
pub(crate) fn call(op: &'static str, body: impl FnOnce(*mut *mut c_char) -> c_int) -> Result<()> {
    let mut message: *mut c_char = std::ptr::null_mut();
    if body(&mut message) == 0 {
        return Ok(());
    }
    let text = if message.is_null() {
        "no message".to_string()
    } else {
        // SAFETY: the shim returned a NUL-terminated string that we own until we hand it back below.
        unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            ruminate_free_message(message);
            text
        }
    };
    Err(Error::Libtorch { op, message: without_trace(&text).into() })
}

/// Runs a shim function that returns a tensor.
pub(crate) fn call_tensor(
    op: &'static str,
    body: impl FnOnce(*mut *mut C_tensor, *mut *mut c_char) -> c_int,
) -> Result<Tensor> {
    let mut out: *mut C_tensor = std::ptr::null_mut();
    call(op, |error| body(&mut out, error))?;
    // SAFETY: on success the shim stored a new tensor in `out` whose ownership passes to us.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// The same for a function that gives no tensor where the case is not its own.
pub(crate) fn call_if_any(
    op: &'static str,
    body: impl FnOnce(*mut *mut C_tensor, *mut *mut c_char) -> c_int,
) -> Result<Option<Tensor>> {
    let mut out: *mut C_tensor = std::ptr::null_mut();
    call(op, |error| body(&mut out, error))?;
    // SAFETY: a tensor that the shim stored in `out` is new, and its ownership passes to us.
    Ok((!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }))
}
