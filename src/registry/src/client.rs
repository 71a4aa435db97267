//! Requests to one repository of one registry: who asks, redirects, and what answers mean.
//!
//! # Invariants
//! - Credentials and tokens go to the registry itself and to the token server that it names, never
//!   to a place to which it redirects, and never over plain HTTP unless that was asked for.
//! - No answer is read beyond the limit of what was asked for.
//! - A redirect is followed only by a request that can be repeated there as it is.

use crate::access::{Access, Credentials};
use crate::call::Call;
use crate::challenge::{self, Challenge};
use crate::error::{Detail, Error, Result};
use crate::trust;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cowshed_oci::Reference;
use cowshed_oci::error::Printable;
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Method, Response, StatusCode, Url};
use std::error::Error as _;
use std::io;
use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

const CONNECT_TIME: Duration = Duration::from_secs(15);
/// The longest time without a byte.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// The longest time for a manifest, a configuration, a token or the description of a failure.
const BODY_TIME: Duration = Duration::from_secs(120);
const REDIRECTS_MAX: usize = 5;
/// The largest answer of a token server, and the most that is read of a failure's description.
const SMALL_BYTES_MAX: u64 = 256 << 10;
/// Docker's registry has another host than its images' names.
const DOCKER: &str = "docker.io";
const DOCKER_HOST: &str = "registry-1.docker.io";
const CLIENT_ID: &str = "cowshed";

/// A client for one repository.
pub(crate) struct Client {
    http: reqwest::Client,
    /// As `http`, for requests that send: the time that one takes has no limit as long as bytes go.
    sender: reqwest::Client,
    /// The host and port, as users name them.
    server: String,
    base: Url,
    repository: String,
    scopes: Vec<String>,
    credentials: Option<Credentials>,
    is_plain_http: bool,
    /// What proves who asks, once the registry has asked for it.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Client {
    /// Returns a client that reads the repository of `reference`. Nothing is sent yet.
    pub(crate) fn new(reference: &Reference, access: &Access) -> Result<Self> {
        let scope = format!("repository:{}:pull", reference.path());
        Self::with_scopes(reference, access, vec![scope])
    }

    /// Returns a client that reads and writes the repository of `reference`.
    pub(crate) fn for_push(reference: &Reference, access: &Access) -> Result<Self> {
        let scope = format!("repository:{}:pull,push", reference.path());
        Self::with_scopes(reference, access, vec![scope])
    }

    /// Returns a client that reads the repository `source` too, with a token of its own.
    pub(crate) fn reading(&self, source: &str) -> Self {
        let other = format!("repository:{source}:pull");
        Self {
            http: self.http.clone(),
            sender: self.sender.clone(),
            server: self.server.clone(),
            base: self.base.clone(),
            repository: self.repository.clone(),
            scopes: self.scopes.iter().cloned().chain([other]).collect(),
            credentials: self.credentials.clone(),
            is_plain_http: self.is_plain_http,
            authorization: Mutex::new(None),
        }
    }

    fn with_scopes(reference: &Reference, access: &Access, scopes: Vec<String>) -> Result<Self> {
        let server = reference.domain().to_owned();
        let host = if server == DOCKER {
            DOCKER_HOST
        } else {
            &server
        };
        let scheme = if access.is_plain_http {
            "http"
        } else {
            "https"
        };
        let base = Url::parse(&format!("{scheme}://{host}/v2/"))
            .map_err(|_| Error::Name(server.clone()))?;
        let builder = http_builder(access)?;
        Ok(Self {
            http: built(builder.read_timeout(IDLE_TIME))?,
            sender: built(http_builder(access)?)?,
            server,
            base,
            scopes,
            repository: reference.path().to_owned(),
            credentials: access.credentials.clone(),
            is_plain_http: access.is_plain_http,
            authorization: Mutex::new(None),
        })
    }

    /// Returns the registry's host and port.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Returns the address of something in the repository.
    pub(crate) fn url(&self, path: &str) -> Result<Url> {
        let name = || Error::Name(self.server.clone());
        self.base
            .join(&format!("{}/{path}", self.repository))
            .map_err(|_| name())
    }

    /// Returns the path of the repository.
    pub(crate) fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the address to which the registry redirects, or where it wants more.
    pub(crate) fn resolve(&self, from: &Url, headers: &HeaderMap, what: &str) -> Result<Url> {
        let fault = |fault| Error::Redirect {
            server: self.server.clone(),
            what: what.to_owned(),
            fault,
        };
        let location = headers.get(LOCATION).and_then(|text| text.to_str().ok());
        let location = location.ok_or_else(|| fault("it names no place"))?;
        let url = from.join(location);
        let url = url.map_err(|_| fault("the place is no address"))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.is_plain_http => Ok(url),
            "http" => Err(fault("it has no TLS")),
            _ => Err(fault("it is not on HTTP")),
        }
    }

    /// Sends a request, follows redirects, and authenticates if the registry wants that. The answer
    /// is a success.
    pub(crate) async fn send(&self, mut call: Call<'_>) -> Result<Response> {
        let (mut proved, mut moves) = (0, 0);
        loop {
            let is_home = is_same_place(&call.url, &self.base);
            let used = if is_home { self.authorization() } else { None };
            let answer = self.send_once(&call, used.as_ref()).await?;
            let status = answer.status();
            if status == StatusCode::UNAUTHORIZED && is_home && proved < 2 {
                proved += 1;
                self.prove(&answer, used.as_ref(), &call).await?;
            } else if status.is_redirection() {
                moves += 1;
                let fault = if moves > REDIRECTS_MAX {
                    Some("there are too many in a row")
                } else if call.sends() && !keeps_method(status) {
                    Some("what is sent would be lost on the way")
                } else {
                    None
                };
                if let Some(fault) = fault {
                    return Err(Error::Redirect {
                        server: self.server.clone(),
                        what: call.what.to_owned(),
                        fault,
                    });
                }
                call.url = self.resolve(&call.url, answer.headers(), call.what)?;
            } else if status == StatusCode::OK && call.sends() && is_page(answer.headers()) {
                // Some registries state this type for the empty content of a 201 or 202.
                return Err(self.not_a_registry("with a page for browsers"));
            } else if status.is_success() {
                return Ok(answer);
            } else {
                return Err(self.failure(answer, &call).await);
            }
        }
    }

    async fn send_once(
        &self,
        call: &Call<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response> {
        let client = if call.sends() {
            &self.sender
        } else {
            &self.http
        };
        let mut request = call.request(client);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let answer = async { request.send().await.map_err(|error| self.broken(&error)) };
        if !call.sends() {
            return answer.await;
        }
        tokio::select! {
            answer = answer => answer,
            () = call.stalled() => Err(Error::Cut {
                server: self.server.clone(),
                cause: format!("it takes {} too slowly", call.what),
            }),
        }
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let held = self.authorization.lock();
        held.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gets what proves who asks, as the registry wants it. `used` is what was not enough.
    async fn prove(
        &self,
        answer: &Response,
        used: Option<&HeaderValue>,
        call: &Call<'_>,
    ) -> Result<()> {
        let refused = || Error::Refused {
            server: self.server.clone(),
            what: call.what.to_owned(),
            is_sent: call.sends(),
            has_login: self.credentials.is_some(),
            detail: Detail::default(),
        };
        let values = answer.headers().get_all(WWW_AUTHENTICATE);
        let values = values.iter().filter_map(|value| value.to_str().ok());
        let challenge = challenge::best(values).ok_or_else(refused)?;
        let new = match (&self.credentials, challenge) {
            (Some(Credentials::RegistryToken(token)), _) => {
                self.header(&format!("Bearer {token}"))?
            }
            (Some(Credentials::Password { user, password }), Challenge::Basic) => {
                let pair = STANDARD.encode(format!("{user}:{password}"));
                self.header(&format!("Basic {pair}"))?
            }
            (_, Challenge::Basic) => return Err(refused()),
            (_, Challenge::Bearer { realm, service }) => {
                let token = self.token(&realm, service.as_deref(), call.what).await?;
                self.header(&format!("Bearer {token}"))?
            }
        };
        // A password is no better the second time; a token may have been too old.
        if used == Some(&new) {
            return Err(refused());
        }
        let held = self.authorization.lock();
        *held.unwrap_or_else(PoisonError::into_inner) = Some(new);
        Ok(())
    }

    fn header(&self, text: &str) -> Result<HeaderValue> {
        let fault = |_| self.not_a_registry("its token has unsuitable characters");
        let mut value = HeaderValue::from_str(text).map_err(fault)?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// Asks the token server for a token.
    async fn token(&self, realm: &str, service: Option<&str>, what: &str) -> Result<String> {
        let mut url = Url::parse(realm)
            .map_err(|_| self.not_a_registry("its token server has no address"))?;
        if url.scheme() != "https" && !(self.is_plain_http && url.scheme() == "http") {
            return Err(self.not_a_registry("its token server has no TLS"));
        }
        let form = |url: &mut Url| {
            let mut pairs = url.query_pairs_mut();
            pairs.extend_pairs(service.map(|service| ("service", service)));
            pairs.extend_pairs(self.scopes.iter().map(|scope| ("scope", scope)));
            pairs.append_pair("client_id", CLIENT_ID);
        };
        let request = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                let mut body = self.base.clone();
                body.set_query(None);
                body.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("refresh_token", token)
                    .extend_pairs(service.map(|service| ("service", service)))
                    .append_pair("scope", &self.scopes.join(" "))
                    .append_pair("client_id", CLIENT_ID);
                let body = body.query().unwrap_or_default().to_owned();
                let form = "application/x-www-form-urlencoded";
                self.http.post(url).header(CONTENT_TYPE, form).body(body)
            }
            Some(Credentials::Password { user, password }) => {
                form(&mut url);
                url.query_pairs_mut().append_pair("account", user);
                self.http.get(url).basic_auth(user, Some(password))
            }
            _ => {
                form(&mut url);
                self.http.get(url)
            }
        };
        let answer = request.send().await.map_err(|error| self.broken(&error))?;
        if !answer.status().is_success() {
            let asked = Call::get(self.base.clone(), what);
            return Err(self.failure(answer, &asked).await);
        }
        let bytes = self.body(answer, "a token", SMALL_BYTES_MAX).await?;
        let value: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|_| self.not_a_registry("its token server sends no token"))?;
        let token = value["token"].as_str().or(value["access_token"].as_str());
        let token = token.filter(|token| !token.is_empty());
        token
            .map(str::to_owned)
            .ok_or_else(|| self.not_a_registry("its token server sends no token"))
    }

    /// Reads a whole answer of at most `max_bytes`, in a limited time.
    pub(crate) async fn body(
        &self,
        answer: Response,
        what: &str,
        max_bytes: u64,
    ) -> Result<Vec<u8>> {
        let read = tokio::time::timeout(BODY_TIME, self.whole(answer, what, max_bytes));
        read.await.unwrap_or_else(|_| {
            Err(Error::Cut {
                server: self.server.clone(),
                cause: format!("it sends {what} too slowly"),
            })
        })
    }

    async fn whole(&self, mut answer: Response, what: &str, max_bytes: u64) -> Result<Vec<u8>> {
        let too_large = || Error::TooLarge {
            what: what.to_owned(),
            max_bytes,
        };
        if answer.content_length().is_some_and(|len| len > max_bytes) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        loop {
            let piece = answer.chunk().await.map_err(|error| self.broken(&error))?;
            let Some(piece) = piece else {
                return Ok(bytes);
            };
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > max_bytes {
                return Err(too_large());
            }
        }
    }

    pub(crate) fn not_a_registry(&self, fault: &str) -> Error {
        Error::NotARegistry {
            server: self.server.clone(),
            fault: Printable::from(fault),
        }
    }

    /// Returns the error that an answer without success means.
    async fn failure(&self, answer: Response, call: &Call<'_>) -> Error {
        let (server, status) = (self.server.clone(), answer.status());
        let what = call.what.to_owned();
        let retry_after = retry_after(answer.headers());
        let is_page = is_page(answer.headers()) && call.method != Method::HEAD;
        let detail = match self.body(answer, &what, SMALL_BYTES_MAX).await {
            Ok(bytes) if status == StatusCode::BAD_REQUEST && wants_tls(&bytes) => {
                return Error::WantsTls { server };
            }
            Ok(bytes) => detail(&bytes),
            Err(_) => Detail::default(),
        };
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Error::Refused {
                server,
                what,
                is_sent: call.sends(),
                has_login: self.credentials.is_some(),
                detail,
            },
            StatusCode::NOT_FOUND if is_page && detail == Detail::default() => {
                self.not_a_registry("with a page for browsers")
            }
            StatusCode::NOT_FOUND if !call.sends() => Error::NotFound { server, what },
            status if call.sends() => Error::NotTaken {
                server,
                what,
                status: status.as_u16(),
                detail,
                retry_after,
            },
            status => Error::Status {
                server,
                what,
                status: status.as_u16(),
                detail,
                retry_after,
            },
        }
    }

    /// Returns the error that a failed exchange means.
    pub(crate) fn broken(&self, error: &reqwest::Error) -> Error {
        let mut cause: &(dyn std::error::Error + 'static) = error;
        let mut tls = None;
        while let Some(source) = cause.source() {
            cause = source;
            tls = tls.or_else(|| of_tls(cause));
        }
        // A redirect may have led to another host.
        let place = error.url().and_then(Url::host_str);
        let home = self.base.host_str();
        let server = match place {
            Some(place) if Some(place) != home => place.to_owned(),
            _ => self.server.clone(),
        };
        let cause = match tls {
            Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))
                if error.is_connect() && server == self.server =>
            {
                return Error::NoTls { server };
            }
            Some(tls) if error.is_connect() => {
                return Error::Untrusted {
                    server,
                    cause: trust::in_words(tls),
                    wants_certificate: trust::wants_certificate(tls),
                };
            }
            _ if error.is_timeout() => "it did not answer in time".to_owned(),
            Some(tls) => tls.to_string(),
            None => cause.to_string(),
        };
        if error.is_connect() {
            Error::Unreachable { server, cause }
        } else {
            Error::Cut { server, cause }
        }
    }
}

/// Returns the error of TLS that `cause` is or holds. An error of the host does not show what it
/// holds as its source.
fn of_tls<'e>(cause: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return of_tls(error.get_ref()?);
    }
    cause.downcast_ref()
}

/// Returns true if the answer is a page for browsers.
pub(crate) fn is_page(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|text| text.to_str().ok());
    kind.is_some_and(|kind| {
        kind.trim_start()
            .to_ascii_lowercase()
            .starts_with("text/html")
    })
}

/// Returns true if a redirect with this status is followed with the same method and body.
const fn keeps_method(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT
    )
}

fn is_same_place(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host() == other.host()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// Returns how long the registry wants to be left alone; a date counts as none.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// Returns true if this is what servers of Go, and nginx, answer to HTTP where they expect TLS.
fn wants_tls(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.contains("HTTP request to an HTTPS server")
        || text.contains("plain HTTP request was sent to HTTPS port")
}

/// Returns the description in a registry's failure.
fn detail(bytes: &[u8]) -> Detail {
    let value: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let first = &value["errors"][0];
    let text = first["message"].as_str().or(first["code"].as_str());
    let text = text
        .or(value["details"].as_str())
        .filter(|text| !text.is_empty());
    Detail(text.map(Printable::from))
}

/// Returns what makes a client for HTTP with the trusted authorities.
fn http_builder(access: &Access) -> Result<reqwest::ClientBuilder> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // If another one is there already, that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("cowshed/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIME)
        .https_only(!access.is_plain_http);
    let mut given = Vec::new();
    for path in &access.authorities {
        let fault = |fault: String| Error::Certificate {
            path: path.clone(),
            fault,
        };
        let bytes = std::fs::read(path).map_err(|error| fault(error.to_string()))?;
        given.append(&mut trust::certificates(&bytes).map_err(fault)?);
    }
    if !given.is_empty() {
        let config = trust::config(given).map_err(|error| Error::Io {
            action: "use the given certificates",
            source: io::Error::other(trust::in_words(&error)),
        })?;
        builder = builder.tls_backend_preconfigured(config);
    }
    Ok(builder)
}

fn built(builder: reqwest::ClientBuilder) -> Result<reqwest::Client> {
    builder.build().map_err(|error| Error::Io {
        action: "prepare the connection",
        source: io::Error::other(
            error
                .source()
                .map_or_else(|| error.to_string(), ToString::to_string),
        ),
    })
}
