//! The key goes onto the wire behind the back of the HTTP library, which logs the bytes of each request at level trace.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use ureq::Error;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// A word that stands for the key until the bytes are sent; both have the same length.
#[derive(Clone)]
pub(super) struct StandIn {
    word: Arc<str>,
    key: Arc<str>,
}

impl fmt::Debug for StandIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StandIn")
    }
}

impl StandIn {
    /// A random word, so that no text holds it by accident.
    pub(super) fn new(key: &str) -> Self {
        let mut word = String::new();
        while word.len() < key.len() {
            word.push_str(&format!("{:016x}", RandomState::new().build_hasher().finish()));
        }
        word.truncate(key.len());
        Self { word: word.into(), key: key.into() }
    }

    pub(super) fn word(&self) -> &str {
        &self.word
    }

    fn replace(&self, bytes: &mut [u8]) {
        let word = self.word.as_bytes();
        let mut at = 0;
        while let Some(found) = bytes[at..].windows(word.len()).position(|window| window == word) {
            at += found;
            bytes[at..at + word.len()].copy_from_slice(self.key.as_bytes());
            at += word.len();
        }
    }
}

/// Wraps connections.
#[derive(Debug)]
pub(super) struct Keyed(pub(super) Option<StandIn>);

impl<In: Transport> Connector<In> for Keyed {
    type Out = KeyedTransport<In>;

    fn connect(&self, _: &ConnectionDetails<'_>, inner: Option<In>) -> Result<Option<Self::Out>, Error> {
        Ok(inner.map(|inner| KeyedTransport { inner, stand_in: self.0.clone() }))
    }
}

#[derive(Debug)]
pub(super) struct KeyedTransport<In> {
    inner: In,
    stand_in: Option<StandIn>,
}

impl<In: Transport> Transport for KeyedTransport<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if let Some(stand_in) = &self.stand_in {
            // A header line is in one piece: the library writes each into the buffer whole or not at all.
            stand_in.replace(&mut self.inner.buffers().output()[..amount]);
        }
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_takes_the_place_of_its_word_everywhere() {
        let stand_in = StandIn::new("sk-0123456789-0123456789");
        assert_eq!(stand_in.word().len(), 24);
        let mut bytes = format!("a {0}{0} b", stand_in.word()).into_bytes();
        stand_in.replace(&mut bytes);
        assert_eq!(bytes, b"a sk-0123456789-0123456789sk-0123456789-0123456789 b");
        stand_in.replace(&mut []);
        assert_eq!(format!("{stand_in:?}"), "StandIn");
    }
}
