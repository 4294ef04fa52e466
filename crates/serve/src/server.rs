//! Starting and stopping.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use axum::serve::ListenerExt;
use ruminate_models::{Interrupt, Model, ModelShape};
use tokio::time::{sleep, timeout};

use crate::engine::Engine;
use crate::http::{Api, router};
use crate::request::Served;
use crate::{Error, Result, ServeConfig};

/// Tokens of prompt and answer where neither model nor settings limit them.
const CONTEXT_LENGTH: usize = 4096;
/// How often a request to stop is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Time to send the last errors when the grace time is over.
const FLUSH: Duration = Duration::from_secs(2);

/// Serves a model under a name until `stop` is raised.
///
/// The model works on the calling thread. Another thread takes requests; `on_ready` is told its address once it does. When `stop` is raised,
/// no more requests are taken. Answers under way have [`grace_secs`](ServeConfig::grace_secs) to be finished, and end with an error then.
///
/// Settings that requests leave out are those of the model's folder ([`generation_config`](ruminate_models::LanguageModel::generation_config)).
///
/// # Errors
/// When a setting is out of its range, the address is taken or could be reached from other machines without a key, the model has no
/// tokenizer, or its folder asks for something that is not implemented.
pub fn serve(
    model: &Model,
    name: &str,
    config: &ServeConfig,
    on_ready: impl FnOnce(SocketAddr),
    stop: &Interrupt,
) -> Result<()> {
    config.validate()?;
    let addresses = config.addresses()?;
    let key = config.key(&addresses)?;
    let defaults = model.generation_config()?;
    let template = match config.named_template()? {
        Some(template) => Some(template),
        None => model.chat_template()?,
    };
    let served = Served {
        name: name.to_owned(),
        tokenizer: model.tokenizer().ok_or(Error::NoTokenizer)?.clone(),
        template,
        defaults: defaults.clone(),
        vocab_size: model.config().vocab_size(),
        has_encoder: model.config().has_encoder(),
        context_length: context_length(config.context_length, model.config().context_length())?,
        config: config.clone(),
    };
    let bind = |source| Error::Bind { host: config.host.clone(), port: config.port, source };
    let listener = TcpListener::bind(&addresses[..]).map_err(bind)?;
    listener.set_nonblocking(true).map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;

    let (closing, abort) = (Interrupt::default(), Interrupt::default());
    let (sender, jobs) = channel();
    let api = Arc::new(Api::new(served, key, sender, closing.clone()));
    let stopping = Stopping {
        stop: stop.clone(),
        closing: closing.clone(),
        abort: abort.clone(),
        grace: Duration::from_secs(config.grace_secs),
    };
    let engine = Engine { model, defaults, gather: Duration::from_millis(config.gather_ms), abort };
    std::thread::scope(|scope| {
        let http = std::thread::Builder::new().name("http".to_owned());
        let http = http.spawn_scoped(scope, move || run(listener, api, &stopping)).map_err(Error::Http)?;
        // Ends the other thread also when this one panics.
        let closing = RaisedAtLast(closing);
        on_ready(address);
        engine.run(&jobs);
        drop(closing);
        match http.join() {
            Ok(ended) => ended.map_err(Error::Http),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The smaller of two limits.
fn context_length(setting: Option<usize>, model: Option<usize>) -> Result<usize> {
    match (setting, model) {
        (Some(setting), Some(model)) if setting > model => {
            let reason = format!("is {setting}, but the model reads {model} tokens at most");
            Err(Error::config("context_length", reason))
        }
        (setting, model) => Ok(setting.or(model).unwrap_or(CONTEXT_LENGTH)),
    }
}

struct RaisedAtLast(Interrupt);

impl Drop for RaisedAtLast {
    fn drop(&mut self) {
        self.0.raise();
    }
}

/// How the server ends.
struct Stopping {
    /// The caller's request.
    stop: Interrupt,
    /// Takes no more requests.
    closing: Interrupt,
    /// Ends answers under way.
    abort: Interrupt,
    grace: Duration,
}

impl Stopping {
    async fn requested(&self) {
        while !self.stop.is_raised() && !self.closing.is_raised() {
            sleep(LOOK).await;
        }
    }
}

/// Takes requests until it is told to stop.
fn run(listener: TcpListener, api: Arc<Api>, stopping: &Stopping) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let ended = runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        // Pieces of a stream are small, and each is to be there at once.
        let listener = listener.tap_io(|connection| {
            if let Err(error) = connection.set_nodelay(true) {
                log::debug!("a connection may be slow: {error}");
            }
        });
        let (close, closed) = tokio::sync::oneshot::channel::<()>();
        let server = axum::serve(listener, router(api)).with_graceful_shutdown(async {
            let _ = closed.await;
        });
        let mut server = std::pin::pin!(server.into_future());
        tokio::select! {
            ended = &mut server => return ended,
            () = stopping.requested() => {}
        }
        stopping.closing.raise();
        drop(close);
        if let Ok(ended) = timeout(stopping.grace, &mut server).await {
            return ended;
        }
        stopping.abort.raise();
        // Who does not even take the error is left alone.
        timeout(FLUSH, &mut server).await.unwrap_or(Ok(()))
    });
    // Whoever fails ends the work of the model, too.
    stopping.abort.raise();
    runtime.shutdown_background();
    ended
}
