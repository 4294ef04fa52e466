//! What can go wrong, for the caller of the library and for clients.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ruminate_datasets::chat::ChatError;
use serde_json::{Value, json};

/// Why a server cannot start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range.
    #[error("{key} {reason}")]
    Config {
        /// The setting.
        key: &'static str,
        /// The mistake in it.
        reason: String,
    },
    /// The address cannot be listened at.
    #[error("cannot listen at {host}, port {port}")]
    Bind {
        /// The host of the settings.
        host: String,
        /// The port of the settings.
        port: u16,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// Other machines could use the server without a key.
    #[error(
        "{host} can be reached from other machines, so clients need a key: put one into an environment variable and \
         name it with api_key_env, or listen at 127.0.0.1"
    )]
    KeyNeeded {
        /// The host of the settings.
        host: String,
    },
    /// The variable that is to hold the key is not set.
    #[error(
        "the environment variable {variable} is to hold the key for clients (api_key_env), but is not set or empty"
    )]
    NoKey {
        /// Its name.
        variable: String,
    },
    /// The model has no tokenizer.
    #[error("the model has no tokenizer, so it cannot read texts: its folder lacks tokenizer.json")]
    NoTokenizer,
    /// The chat template is unknown.
    #[error("chat_template cannot be used")]
    ChatTemplate {
        /// The reason.
        source: ChatError,
    },
    /// The defaults of the model's folder cannot be used.
    #[error(transparent)]
    Model(#[from] ruminate_models::Error),
    /// The server itself failed.
    #[error("the HTTP server failed")]
    Http(#[source] std::io::Error),
}

impl Error {
    /// True if another configuration would help.
    #[must_use]
    pub fn is_configuration(&self) -> bool {
        matches!(
            self,
            Self::Config { .. } | Self::KeyNeeded { .. } | Self::NoKey { .. } | Self::ChatTemplate { .. }
        )
    }

    pub(crate) fn config(key: &'static str, reason: impl Into<String>) -> Self {
        Self::Config { key, reason: reason.into() }
    }
}

/// Results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// An error as a client sees it.
#[derive(Debug, Clone)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None, code: None }
    }

    fn with_code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The request is wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// One field of the request is wrong.
    pub(crate) fn field(name: &str, reason: impl std::fmt::Display) -> Self {
        Self { param: Some(name.into()), ..Self::invalid(format!("`{name}` {reason}")) }
    }

    /// Prompt and answer do not fit into the model.
    pub(crate) fn too_long(name: &str, message: String) -> Self {
        Self { param: Some(name.into()), ..Self::invalid(message).with_code("context_length_exceeded") }
    }

    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the request has more than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
            .with_code("request_too_large")
    }

    pub(crate) fn wrong_key(message: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "invalid_request_error", message).with_code("invalid_api_key")
    }

    pub(crate) fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("the model `{asked}` does not exist here; this server has `{served}`");
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Self { param: Some("model".into()), ..error.with_code("model_not_found") }
    }

    pub(crate) fn unknown_path(method: &str, path: &str) -> Self {
        let message = format!("there is no {method} {path} here");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message).with_code("unknown_url")
    }

    pub(crate) fn wrong_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
    }

    pub(crate) fn busy(rows: usize) -> Self {
        let message = format!("{rows} answers are under way, as many as there may be; try again later");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message).with_code("rate_limit_exceeded")
    }

    pub(crate) fn timeout(secs: u64) -> Self {
        let message = format!("the answer was not there after {secs} seconds");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", message).with_code("timeout")
    }

    pub(crate) fn closing() -> Self {
        let message = "the server is shutting down";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message).with_code("shutting_down")
    }

    pub(crate) fn internal(error: &dyn std::error::Error) -> Self {
        let causes = std::iter::successors(error.source(), |error| error.source());
        let message = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        log::error!("a request failed: {message}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    pub(crate) fn to_json(&self) -> Value {
        let Self { kind, message, param, code, .. } = self;
        json!({"error": {"message": message, "type": kind, "param": param, "code": code}})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.to_json());
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// A response that holds JSON.
pub(crate) fn json_response(status: StatusCode, json: &Value) -> Response {
    let mut response = Response::new(Body::from(json.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
