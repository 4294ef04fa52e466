//! Teachers behind https. The certificates that are trusted come from the environment, so each case is a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use ruminate_datasets::NullObserver;
use ruminate_datasets::teacher::{Teacher, TeacherConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::stub::{self, completion};
use crate::{any, requests};

const ADDRESS: &str = "RUMINATE_TEST_HTTPS";
const FILE: &str = "RUMINATE_TEST_HTTPS_FILE";

/// Does nothing but in a child.
#[test]
#[expect(clippy::print_stdout, reason = "the parent reads it")]
fn asks_by_https() {
    let (Ok(address), Ok(path)) = (std::env::var(ADDRESS), std::env::var(FILE)) else { return };
    let teacher = Teacher::new(TeacherConfig { attempts: 1, ..stub::config(&address) }).unwrap();
    match teacher.ask(&requests(1), path.as_ref(), any, &mut NullObserver) {
        Ok(outcome) => println!("done: {outcome:?}"),
        Err(error) => println!("error: {error}"),
    }
}

/// The output of a process that trusts the certificates in a file.
fn child(address: &str, trusted: &Path, answers: &Path) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "https::asks_by_https", "--nocapture", "--test-threads=1"]);
    command.env(ADDRESS, address).env(FILE, answers).env("SSL_CERT_FILE", trusted).env_remove("SSL_CERT_DIR");
    String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
}

#[test]
fn a_server_with_a_trusted_certificate_is_asked_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let [known, unknown] = ["known", "unknown"].map(|name| {
        let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]).unwrap();
        let path = folder.path().join(format!("{name}.pem"));
        std::fs::write(&path, made.cert.pem()).unwrap();
        (path, made)
    });
    let (trusted, made) = &known;
    let certificate = CertificateDer::from(made.cert.der().to_vec());
    let key = PrivateKeyDer::from_pem_slice(made.signing_key.serialize_pem().as_bytes()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let address = serve(Arc::new(config));
    let shown = child(&address, trusted, &folder.path().join("a.jsonl"));
    assert!(shown.contains("done: ") && shown.contains("by https"), "{shown}");
    // Whoever does not know the certificate, or knows none, sends nothing and says why.
    let none = folder.path().join("none.pem");
    std::fs::write(&none, "").unwrap();
    for trusted in [&unknown.0, &none] {
        let shown = child(&address, trusted, &folder.path().join("b.jsonl"));
        assert!(!shown.contains("by https") && shown.to_lowercase().contains("certificate"), "{shown}");
    }
}

/// A server that says the same to everyone.
fn serve(config: Arc<ServerConfig>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let connection = ServerConnection::new(config.clone()).unwrap();
            let mut stream = BufReader::new(StreamOwned::new(connection, stream.unwrap()));
            // A client that does not trust us hangs up.
            let _ = answer(&mut stream);
        }
    });
    format!("https://localhost:{port}/v1")
}

fn answer(stream: &mut BufReader<impl Read + Write>) -> std::io::Result<()> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    stream.read_exact(&mut vec![0; length])?;
    let body = completion(&["by https"]).to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.get_mut().write_all(format!("{head}{body}").as_bytes())?;
    stream.get_mut().flush()
}
