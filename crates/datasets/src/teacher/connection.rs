//! Requests to one address, with a key that nobody sees.

use std::collections::BTreeMap;
use std::time::Duration;

use ureq::Agent;
use ureq::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, DefaultConnector};

use super::secret::ApiKey;
use super::wire::Keyed;
use super::{KeySource, Result, TeacherError};

/// Longer replies are refused, so that no server can fill the memory.
pub(super) const LONGEST_REPLY: u64 = 64 << 20;

/// How an address is asked.
#[derive(Debug, Clone)]
pub struct ConnectionSettings<'a> {
    /// The whole address.
    pub url: String,
    /// Where the key comes from.
    pub key: &'a KeySource,
    /// The header of the key; `authorization` sends `Bearer KEY`, any other name the key alone.
    pub key_header: &'a str,
    /// Further headers.
    pub headers: &'a BTreeMap<String, String>,
    /// How long a request may take.
    pub timeout: Duration,
    /// Connections that are kept for further requests.
    pub idle: usize,
}

/// Posts JSON to one address. Its key is in no log, and not in the replies' messages that [`hide`](Self::hide) has gone over; this machine is
/// asked without a proxy, and redirects are not followed, because a redirected request loses its key or its body.
#[derive(Debug)]
pub struct Connection {
    agent: Agent,
    url: String,
    key: ApiKey,
    headers: HeaderMap,
}

/// The reply of a server.
#[derive(Debug)]
pub struct HttpReply {
    /// The status.
    pub status: u16,
    /// The header `retry-after`, as it was sent.
    pub retry_after: Option<String>,
    /// The body, or why it could not be read to its end.
    pub body: std::result::Result<Vec<u8>, String>,
}

impl Connection {
    /// Reads the key and prepares requests; nothing is sent.
    ///
    /// # Errors
    /// The key is missing, a header is none, or the address cannot be asked by this build.
    pub fn open(settings: &ConnectionSettings<'_>) -> Result<Self> {
        let scheme = settings.url.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
        let reason = match scheme.as_ref().and_then(Uri::scheme_str) {
            Some("http") => None,
            Some("https") if cfg!(feature = "https") => None,
            Some("https") => Some("https needs a build with the feature `https`, which is on by default"),
            _ => Some("is no address such as http://localhost:8000"),
        };
        if let Some(reason) = reason {
            return Err(TeacherError::Config { field: "url", reason: reason.into() });
        }
        let key = ApiKey::load(settings.key)?;
        let invalid = |reason: &str| TeacherError::Config { field: "headers", reason: reason.into() };
        let named = |name: &str| name.parse::<HeaderName>().map_err(|_| invalid("is no name of a header"));
        let mut headers = HeaderMap::new();
        for (name, value) in settings.headers {
            let value = HeaderValue::from_str(value).map_err(|_| invalid("is no value of a header"))?;
            headers.insert(named(name)?, value);
        }
        let name = named(settings.key_header)?;
        let mut stand_in = None;
        if let Some((value, word)) = key.header(name == header::AUTHORIZATION) {
            headers.insert(name, value);
            stand_in = word;
        }
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(settings.idle)
            .max_idle_connections_per_host(settings.idle)
            .user_agent(concat!("ruminate/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(settings.timeout));
        #[cfg(feature = "https")]
        {
            use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
            let tls = TlsConfig::builder()
                .provider(TlsProvider::Rustls)
                .root_certs(RootCerts::PlatformVerifier)
                .build();
            builder = builder.tls_config(tls);
        }
        if is_this_machine(&settings.url) {
            builder = builder.proxy(None);
        }
        let connector = DefaultConnector::new().chain(Keyed(stand_in));
        let agent = Agent::with_parts(builder.build(), connector, DefaultResolver::default());
        Ok(Self { agent, url: settings.url.clone(), key, headers })
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// No reply came, and why.
    pub fn post(&self, body: &[u8]) -> std::result::Result<HttpReply, String> {
        let mut request = self.agent.post(&self.url).content_type("application/json");
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
        }
        let mut response = request.send(body).map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        let retry_after = retry_after.map(str::to_owned);
        let body = response.body_mut().with_config().limit(LONGEST_REPLY).read_to_vec();
        Ok(HttpReply { status, retry_after, body: body.map_err(|error| error.to_string()) })
    }

    /// The address.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A text for people, without the key, not without end, and with escapes for characters that would act on a terminal.
    #[must_use]
    pub fn hide(&self, text: &str) -> String {
        // The key goes first, so that no part of it remains.
        super::client::shown(&self.key.hide(text))
    }

    /// The key.
    pub(super) fn key(&self) -> &ApiKey {
        &self.key
    }
}

/// Proxies do not lead to this machine.
fn is_this_machine(url: &str) -> bool {
    let uri: Option<Uri> = url.parse().ok();
    uri.and_then(|uri| uri.host().map(|h| ["localhost", "127.0.0.1", "[::1]"].contains(&h))).unwrap_or(false)
}
