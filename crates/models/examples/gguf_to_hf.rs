//! Writes the model of a GGUF file as a Hugging Face folder:
//! `cargo run --release -p ruminate-models --example gguf_to_hf -- FILE.gguf FOLDER [--dtype bfloat16]`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks to its terminal")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ruminate_models::checkpoint::convert_gguf;
use tch::Kind;

const USAGE: &str = "usage: gguf_to_hf FILE.gguf FOLDER [--dtype float32|bfloat16|float16]  [default: float32, which rounds nothing]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((file, folder, kind)) = read(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match convert_gguf(&file, &folder, kind) {
        Ok(()) => {
            println!("{}", folder.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            let causes = std::iter::successors(error.source(), |&error| error.source());
            causes.for_each(|cause| eprintln!("  caused by: {cause}"));
            ExitCode::FAILURE
        }
    }
}

fn read(arguments: &[String]) -> Option<(PathBuf, PathBuf, Kind)> {
    let (places, dtype) = match arguments {
        [file, folder] => ([file, folder], "float32"),
        [file, folder, option, dtype] | [option, dtype, file, folder] if option == "--dtype" => {
            ([file, folder], dtype.as_str())
        }
        _ => return None,
    };
    let kind = match dtype {
        "float32" | "f32" => Kind::Float,
        "bfloat16" | "bf16" => Kind::BFloat16,
        "float16" | "f16" => Kind::Half,
        _ => return None,
    };
    let [file, folder] = places.map(|place| Path::new(place).to_path_buf());
    Some((file, folder, kind))
}
