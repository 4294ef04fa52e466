//! Whether every choice of packages builds its dependencies with the same features.
//!
//! Cargo turns on the features that the chosen packages ask for. Where these differ from those of the whole workspace, `cargo test -p X`
//! after `cargo test` compiles half of the dependencies again. `crates/features` asks for all of them, and every package depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::program;

/// Packages that are built without libtorch, and so in seconds whatever the features are.
const EXEMPT: [&str; 2] = ["xtask", "ruminate-libtorch"];

/// Features by package and version.
type Features = BTreeMap<String, BTreeSet<String>>;

/// Prints what differs, and returns whether nothing does.
pub(crate) fn check(root: &Path) -> Result<bool> {
    let all = features(root, &["--workspace", "--edges", "normal,build,dev"])?;
    let mut missing: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (package, published) in packages(root)? {
        if EXEMPT.contains(&package.as_str()) {
            continue;
        }
        // A published crate has the features as a dependency of its tests only.
        let builds: &[&str] =
            if published { &["normal,build,dev"] } else { &["normal,build,dev", "normal,build"] };
        for edges in builds {
            for (dependency, found) in features(root, &["--package", &package, "--edges", edges])? {
                // Our own crates are quick to compile, and have features to be left out.
                let own = dependency.starts_with("ruminate");
                let Some(wanted) = all.get(&dependency).filter(|_| !own) else { continue };
                let lacking: Vec<&str> = wanted.difference(&found).map(String::as_str).collect();
                if !lacking.is_empty() {
                    missing.entry((dependency, lacking.join(", "))).or_default().insert(package.clone());
                }
            }
        }
    }
    for ((dependency, features), packages) in &missing {
        let packages: Vec<_> = packages.iter().map(String::as_str).collect();
        eprintln!("{dependency} lacks {features} in a build of {}", packages.join(", "));
    }
    if !missing.is_empty() {
        eprintln!("add these features in crates/features/Cargo.toml");
    }
    Ok(missing.is_empty())
}

/// The packages of the workspace, and whether they are published.
fn packages(root: &Path) -> Result<Vec<(String, bool)>> {
    let text = output(root, &["metadata", "--no-deps", "--format-version", "1"])?;
    let metadata: Value = serde_json::from_str(&text).context("reading cargo metadata")?;
    let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
    let packages = packages.iter().map(|package| {
        let name = package["name"].as_str().unwrap_or_default().to_string();
        // `publish = false` is an empty list of registries.
        (name, package["publish"].is_null())
    });
    Ok(packages.collect())
}

fn features(root: &Path, selection: &[&str]) -> Result<Features> {
    let tree = ["tree", "--prefix", "none", "--no-dedupe", "--format", "{p}|{f}"];
    Ok(parse(&output(root, &[&tree[..], selection].concat())?))
}

/// Lines such as `serde v1.0.229|default,derive,std`; a package of the workspace has its folder behind the version.
fn parse(tree: &str) -> Features {
    let mut features = Features::new();
    for (package, enabled) in tree.lines().filter_map(|line| line.split_once('|')) {
        let package = package.split(" (").next().unwrap_or(package);
        let enabled = enabled.split(',').filter(|feature| !feature.is_empty()).map(String::from);
        features.entry(package.to_string()).or_default().extend(enabled);
    }
    features
}

fn output(root: &Path, arguments: &[&str]) -> Result<String> {
    let output =
        Command::new(program()).args(arguments).current_dir(root).output().context("starting cargo")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo {}: {errors}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_of_a_package_are_joined() {
        let tree = "a v1.0.0 (/code/a)|\nserde v1.0.229|default,std\nserde_derive v1.0.229 (proc-macro)|default\nserde v1.0.229|alloc\n";
        let features = parse(tree);
        assert_eq!(features["serde v1.0.229"], BTreeSet::from(["alloc", "default", "std"].map(String::from)));
        assert!(features["a v1.0.0"].is_empty() && features.contains_key("serde_derive v1.0.229"));
    }
}
