//! The C++ compiler of this machine.

use ruminate_libtorch::Problem;
use ruminate_libtorch::machine::first_line;

/// A C++ compiler that works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// The command, as build scripts take it in CXX.
    pub(crate) command: String,
    /// What it says about itself.
    pub(crate) version: String,
    /// Whether build scripts would not find it by themselves: CXX has to name it.
    pub(crate) needs_cxx: bool,
}

/// The C++ compiler, which builds the bindings to libtorch.
pub(crate) fn compiler() -> Result<Compiler, Problem> {
    find_compiler(std::env::var("CXX").ok().as_deref(), |command| first_line(command, &["--version"]))
}

fn find_compiler(cxx: Option<&str>, version: impl Fn(&str) -> Option<String>) -> Result<Compiler, Problem> {
    let install = "install one (on Debian and Ubuntu: apt-get install g++), or set CXX to yours";
    if let Some(command) = cxx.filter(|cxx| !cxx.trim().is_empty()) {
        // CXX may name a wrapper with it, as in "ccache g++"; that the first word runs is what can be checked.
        let program = command.split_whitespace().next().unwrap_or(command);
        return match version(program) {
            Some(version) => Ok(Compiler { command: command.into(), version, needs_cxx: false }),
            None => Err(Problem::new(
                format!("CXX is set to '{command}', which does not run"),
                "set CXX to a C++ compiler that is installed, or unset it",
            )),
        };
    }
    ["c++", "g++", "clang++"]
        .into_iter()
        .find_map(|command| {
            let version = version(command)?;
            Some(Compiler { command: command.into(), version, needs_cxx: command != "c++" })
        })
        .ok_or_else(|| Problem::new("no C++ compiler was found; it builds the bindings to libtorch", install))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cxx_wins_and_must_run() {
        let version = |command: &str| (command != "icpc").then(|| format!("{command} 1"));
        let found = find_compiler(Some("ccache g++-14"), version).unwrap();
        assert_eq!((found.command.as_str(), found.needs_cxx), ("ccache g++-14", false));
        assert!(find_compiler(Some("icpc"), version).unwrap_err().what.contains("icpc"));
        assert_eq!(find_compiler(Some(""), version).unwrap().command, "c++");
    }

    #[test]
    fn a_compiler_under_another_name_is_passed_on() {
        let found = find_compiler(None, |command| (command == "clang++").then(String::new)).unwrap();
        assert_eq!((found.command.as_str(), found.needs_cxx), ("clang++", true));
        assert!(find_compiler(None, |_| None).unwrap_err().fix.contains("g++"));
    }
}
