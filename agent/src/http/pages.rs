//! The pages: paths, methods, formats.

use std::io::Write as _;
use std::sync::Arc;

use axum::Router;
use axum::http::header::{
    ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, VARY, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::sync::Semaphore;
use tracing::error;

use super::{PageError, Pages};

use crate::chain::in_full;
use crate::diagnostic::escape;

/// What Prometheus 3 wants to see; it refuses a scrape over anything that it does not know.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT_TYPE: &str = "text/plain; charset=utf-8";

/// A page, its pages' source and the right to make one.
#[derive(Clone)]
struct Press {
    pages: Arc<dyn Pages>,
    turn: Arc<Semaphore>,
}

/// All paths.
pub(super) fn router(pages: Arc<dyn Pages>) -> Router {
    let press = Press {
        pages,
        turn: Arc::new(Semaphore::new(1)),
    };
    let metrics = press.clone();
    let customers = press.clone();
    let ready = press.clone();
    let refuse = || async { (StatusCode::METHOD_NOT_ALLOWED, [(ALLOW, "GET, HEAD")]) };
    Router::new()
        .route("/", get(landing).fallback(refuse))
        .route(
            "/metrics",
            get(|headers| metrics.metrics(headers, Pages::metrics)).fallback(refuse),
        )
        .route(
            "/metrics/customers",
            get(|headers| customers.metrics(headers, Pages::customers)).fallback(refuse),
        )
        .route(
            "/readyz",
            get(|| ready.state("ready", Pages::ready)).fallback(refuse),
        )
        .route(
            "/healthz",
            get(|| press.state("healthy", Pages::healthy)).fallback(refuse),
        )
        .fallback(|| async { (StatusCode::NOT_FOUND, "there is nothing here\n") })
}

/// The answer to whoever does not prove who he is.
pub(super) fn unauthorized() -> Response {
    let challenge = [(
        WWW_AUTHENTICATE,
        "Basic realm=\"gate25\", charset=\"UTF-8\"",
    )];
    (StatusCode::UNAUTHORIZED, challenge, "unauthorized\n").into_response()
}

impl Press {
    async fn metrics(
        self,
        headers: HeaderMap,
        page: fn(&dyn Pages) -> Result<String, PageError>,
    ) -> Response {
        let gzip = accepts_gzip(&headers);
        let made = self.make(move |pages| {
            let text = page(pages)?;
            if gzip {
                compress(&text)
            } else {
                Ok(text.into_bytes())
            }
        });
        match made.await {
            Some(Ok(body)) => {
                let headers = [
                    (CONTENT_TYPE, HeaderValue::from_static(METRICS_TYPE)),
                    (VARY, HeaderValue::from_static("accept-encoding")),
                ];
                let encoding =
                    gzip.then_some([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
                match encoding {
                    Some(encoding) => (headers, encoding, body).into_response(),
                    None => (headers, body).into_response(),
                }
            }
            Some(Err(error)) => {
                error!(error = in_full(&error), "scrape failed");
                (
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "the metrics could not be collected\n",
                )
                    .into_response()
            }
            None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        }
    }

    async fn state(
        self,
        word: &'static str,
        page: fn(&dyn Pages) -> Result<(), Vec<String>>,
    ) -> Response {
        let (status, text) = match self.make(page).await {
            Some(Ok(())) => (StatusCode::OK, format!("{word}\n")),
            Some(Err(reasons)) => {
                let lines: String = reasons
                    .iter()
                    .map(|reason| format!("{}\n", escape(reason)))
                    .collect();
                (
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("not {word}\n{lines}"),
                )
            }
            None => (StatusCode::SERVICE_UNAVAILABLE, format!("not {word}\n")),
        };
        let headers = [(CONTENT_TYPE, TEXT_TYPE), (CACHE_CONTROL, "no-store")];
        (status, headers, text).into_response()
    }

    /// Makes a page when no other one is being made, outside the reactor. Nothing comes of it if
    /// the runtime ends or the page panics.
    async fn make<T: Send + 'static>(
        self,
        page: impl FnOnce(&dyn Pages) -> T + Send + 'static,
    ) -> Option<T> {
        let turn = self.turn.acquire_owned().await.ok()?;
        let made = tokio::task::spawn_blocking(move || {
            let made = page(&*self.pages);
            // Kept until here, not until the client has gone: he may go first.
            drop(turn);
            made
        });
        made.await.ok()
    }
}

fn compress(text: &str) -> Result<Vec<u8>, PageError> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 8), Compression::fast());
    encoder.write_all(text.as_bytes()).map_err(PageError::new)?;
    encoder.finish().map_err(PageError::new)
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| {
            let mut parts = coding.split(';').map(str::trim);
            let named = parts
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
            let refused = parts
                .filter_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok())
                .any(|quality| quality <= 0.0);
            named && !refused
        })
}

async fn landing() -> Html<String> {
    let version = env!("CARGO_PKG_VERSION");
    let links: String = [
        ("/metrics", "metrics of this host"),
        ("/metrics/customers", "metrics of every customer"),
        ("/readyz", "whether the policy is in force"),
        ("/healthz", "whether the agent works"),
    ]
    .iter()
    .map(|(path, what)| format!("<li><a href=\"{path}\">{path}</a>: {what}</li>\n"))
    .collect();
    Html(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>gate25</title>\
         </head>\n<body>\n<h1>gate25 {version}</h1>\n<p>Closes TCP port 25 of guests in the kernel \
         and opens it for those who qualify.</p>\n<ul>\n{links}</ul>\n</body>\n</html>\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_gzip_follows_names_and_qualities() {
        for (value, expected) in [
            ("gzip", true),
            ("GZIP;q=0.5", true),
            ("deflate, gzip;q=1.0, *;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000", false),
            ("deflate", false),
            ("xgzip", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            assert_eq!(accepts_gzip(&headers), expected, "{value}");
        }
    }
}
