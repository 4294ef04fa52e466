//! Files as memory.

use std::io::ErrorKind;

use ruminate_torch::map_file;

#[test]
fn a_map_is_the_files_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    std::fs::write(&path, b"some bytes").unwrap();
    assert_eq!(&map_file(&path).unwrap()[..], b"some bytes");
    std::fs::write(&path, b"").unwrap();
    assert!(map_file(&path).unwrap().is_empty());
}

#[test]
fn what_is_no_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(map_file(&folder.path().join("absent")).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(map_file(folder.path()).unwrap_err().kind(), ErrorKind::IsADirectory);
    let dangling = folder.path().join("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    assert_eq!(map_file(&dangling).unwrap_err().kind(), ErrorKind::NotFound);
}
