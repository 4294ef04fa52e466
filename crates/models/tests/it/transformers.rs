//! Folders written here, read by `transformers`. Runs where `RUMINATE_PYTHON` names a Python that has it.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use ruminate_models::{Llama, Side, T5, TokenId};
use tch::{Kind, Tensor};

use crate::support::{close, ids, kinds, llamas};

/// The variable that names a Python with torch and transformers.
const PYTHON: &str = "RUMINATE_PYTHON";

/// Writes the logits of the rows in the second argument as bytes, float32, to the third.
const PROGRAM: &str = r#"
import json, sys, torch, transformers
folder, rows, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
config = transformers.AutoConfig.from_pretrained(folder)
model = getattr(transformers, config.architectures[0]).from_pretrained(folder, dtype=torch.float32).eval()
rows = torch.tensor(rows)
extra = {"decoder_input_ids": rows} if config.is_encoder_decoder else {}
with torch.no_grad():
    logits = model(input_ids=rows, use_cache=False, **extra).logits
open(out, "wb").write(logits.contiguous().numpy().tobytes())
"#;

fn rows() -> Vec<Vec<TokenId>> {
    (0..2).map(|row| (0..23).map(|i| (3 + 7 * i + 11 * row) % 40).collect()).collect()
}

/// The logits that transformers computes from a folder.
fn logits(python: &str, folder: &Path, shape: &[i64]) -> Tensor {
    let out = folder.join("logits");
    let rows = serde_json::to_string(&rows()).unwrap();
    let run = Command::new(python).args(["-c", PROGRAM]).arg(folder).arg(&rows).arg(&out).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    Tensor::from_data_size(&std::fs::read(&out).unwrap(), shape, Kind::Float)
}

fn check(python: &str, what: &str, save: impl Fn(&Path), expected: &Tensor) {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path());
    let theirs = logits(python, folder.path(), &expected.size());
    close(&theirs, expected, 1e-4).unwrap_or_else(|reason| panic!("{what}: {reason}"));
}

#[test]
fn transformers_gives_the_same_logits() {
    let Ok(python) = std::env::var(PYTHON) else {
        // Written past the harness, which hides what tests that pass print.
        let _ = writeln!(std::io::stderr(), "skipped: {PYTHON} names no Python with torch and transformers");
        return;
    };
    let llama_logits = |llama: &Llama| {
        llama.logits(&llama.forward(&llama.batch(&rows(), Side::Right).unwrap()).unwrap()).unwrap()
    };
    let t5_logits = |t5: &T5| {
        let encoded = t5.encode(&t5.batch(&rows()).unwrap()).unwrap();
        t5.logits(&t5.decode(&encoded, &ids(&rows())).unwrap()).unwrap()
    };
    tch::no_grad(|| {
        for (kind, llama) in llamas() {
            check(&python, kind, |folder| llama.save(folder).unwrap(), &llama_logits(&llama));
        }
        for (kind, t5) in kinds() {
            check(&python, kind, |folder| t5.save(folder).unwrap(), &t5_logits(&t5));
        }
    });
}
