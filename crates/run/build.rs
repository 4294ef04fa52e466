//! Tells the library which commit it is built from, as `RUMINATE_COMMIT`.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Only in this repository: the copy of a registry may lie in somebody else's.
    if git(&["rev-parse", "--show-prefix"]).as_deref() != Some("crates/run/") {
        return;
    }
    let Some(commit) = git(&["rev-parse", "HEAD"]) else { return };
    let changed =
        git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|files| !files.is_empty());
    println!("cargo:rustc-env=RUMINATE_COMMIT={commit}{}", if changed { ", with changes" } else { "" });
    // The library is compiled again when one of these crates changes, whatever this script asks for.
    let crates = [
        "torch/src",
        "torch/shim",
        "files/src",
        "datasets/src",
        "models/src",
        "rewards/src",
        "algorithms/src",
        "run/src",
    ];
    let watched = crates.iter().map(|name| format!("../{name}"));
    let head = ["HEAD", "logs/HEAD"].iter().filter_map(|name| git(&["rev-parse", "--git-path", name]));
    // Cargo runs the script each time for a file that is not there.
    for path in watched.chain(head).filter(|path| Path::new(path).exists()) {
        println!("cargo:rerun-if-changed={path}");
    }
}

/// Output of git, where there is a git, a repository and no error.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
