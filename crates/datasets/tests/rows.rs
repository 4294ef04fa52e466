//! Large files of rows: memory and time.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use ruminate_datasets::SupervisedExample;
use ruminate_datasets::rows::{Columns, read_supervised};

const ROWS: usize = 1_000_000;
const FILE: &str = "RUMINATE_TEST_ROWS";

/// The most memory that this process has held, in MiB.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

/// Reads the file that the variable names, and tells how the peak grew: run by the test below, in a process of its own.
#[test]
#[ignore = "a part of the test below"]
fn read_one_file() {
    let path = std::env::var_os(FILE).unwrap();
    let before = peak();
    let rows = read_supervised(Path::new(&path), &Columns::default()).unwrap();
    let after = peak();
    assert_eq!(rows.len(), ROWS);
    for i in [0, 77_777, ROWS - 1] {
        let expected =
            SupervisedExample::Completion { prompt: format!("question {i}"), completion: "c".into() };
        assert_eq!(rows[i], expected);
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "\ngrown by {}", after - before).unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_million_rows_take_the_memory_of_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let padding = "x".repeat(200);
    // The last row of the array closes it.
    for (name, open, between, close) in [("rows.jsonl", "", "\n", ""), ("rows.json", "[", ",\n", "]")] {
        let path = folder.path().join(name);
        let mut out = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
        out.write_all(open.as_bytes()).unwrap();
        for i in 0..ROWS {
            let between = if i + 1 < ROWS { between } else { close };
            write!(out, r#"{{"prompt": "question {i}", "completion": "c", "notes": "{padding}"}}{between}"#)
                .unwrap();
        }
        out.into_inner().unwrap();
        let megabytes = std::fs::metadata(&path).unwrap().len() >> 20;
        assert!(megabytes > 240, "{megabytes}");
        let run = Command::new(std::env::current_exe().unwrap())
            .args(["read_one_file", "--exact", "--ignored", "--nocapture"])
            .env(FILE, &path)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&run.stdout);
        let grown = told.lines().find_map(|line| line.strip_prefix("grown by "));
        let grown: usize = grown.unwrap_or_else(|| panic!("{run:?}")).parse().unwrap();
        // A row that is kept takes 48 bytes in the vector, which doubles as it grows, and two allocations of 32: about 160 MiB.
        assert!(grown < 200, "{name}: {grown} MiB for {megabytes} MiB");
        std::fs::remove_file(path).unwrap();
    }
}
