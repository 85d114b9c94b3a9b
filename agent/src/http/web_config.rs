//! The web configuration file: TLS and basic auth, in the format of Prometheus' exporter-toolkit.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use serde::Deserialize;
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info};

use super::auth::Users;

use crate::chain::in_full;
use crate::trust::{Keepers, TrustError};

/// Bytes beyond which a file is not a web configuration.
const MAX_BYTES: u64 = 1024 * 1024;

/// Why a web configuration cannot be used.
#[derive(Debug, Error)]
pub(super) enum WebConfigError {
    #[error("cannot read {path}", path = .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("others could have written it")]
    Exposed(#[from] TrustError),
    #[error("{path} is larger than {MAX_BYTES} bytes", path = .path.display())]
    TooLarge { path: PathBuf },
    #[error("{path} is not a web configuration", path = .path.display())]
    Syntax {
        path: PathBuf,
        source: serde_yaml::Error,
    },
    #[error("the hash of user {user} is not a bcrypt hash")]
    Hash {
        user: String,
        source: bcrypt::BcryptError,
    },
    #[error("{path} holds no usable PEM", path = .path.display())]
    Pem { path: PathBuf, source: pem::Error },
    #[error("{path} holds no certificate", path = .path.display())]
    NoCertificate { path: PathBuf },
    #[error("client_auth_type {kind:?} needs a client_ca_file")]
    NoClientCa { kind: ClientAuth },
    #[error("a client_ca_file needs a client_auth_type that verifies")]
    UnusedClientCa,
    #[error("certificates and keys do not make a tls server")]
    Tls(#[source] rustls::Error),
    #[error("the client_ca_file does not make a verifier")]
    Verifier(#[source] VerifierBuilderError),
}

/// What applies to a connection.
#[derive(Default)]
pub(super) struct WebConfig {
    /// TLS, if it is on.
    pub(super) tls: Option<TlsAcceptor>,
    /// Who may look.
    pub(super) users: Arc<Users>,
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    tls_server_config: Option<RawTls>,
    basic_auth_users: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTls {
    cert_file: PathBuf,
    key_file: PathBuf,
    #[serde(default)]
    client_auth_type: ClientAuth,
    client_ca_file: Option<PathBuf>,
    #[serde(default)]
    min_version: MinVersion,
}

/// Which certificates clients must show. The toolkit's other two types ask for certificates
/// without verifying them, which protects nothing, and are refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) enum ClientAuth {
    #[default]
    NoClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

/// The oldest TLS accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum MinVersion {
    #[default]
    TLS12,
    TLS13,
}

/// A web configuration that follows its file.
pub(super) struct WebConfigFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the files looked like when they were last read; none before the first time.
    seen: Option<Vec<Stamp>>,
    /// The files that those stamps are of.
    files: Vec<PathBuf>,
    config: Option<Arc<WebConfig>>,
}

/// What tells one version of a file from the next; nothing when it cannot be looked at.
type Stamp = Option<[i64; 6]>;

impl WebConfigFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            state: Mutex::default(),
        }
    }

    /// The configuration as the files have it now; none if they do not make a valid one. Its
    /// errors are logged once for each version of the files.
    pub(super) async fn current(self: &Arc<Self>) -> Option<Arc<WebConfig>> {
        let file = Arc::clone(self);
        tokio::task::spawn_blocking(move || file.read())
            .await
            .ok()
            .flatten()
    }

    fn read(&self) -> Option<Arc<WebConfig>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state
            .seen
            .as_ref()
            .is_some_and(|seen| *seen == stamps(&state.files))
        {
            return state.config.clone();
        }
        let mut files = vec![self.path.clone()];
        // Stamped before they are read: a change meanwhile leads to another reading.
        let own = stamps(&files);
        let loaded = load(&self.path, &mut files);
        state.seen = Some([own, stamps(&files[1..])].concat());
        state.files = files;
        state.config = match loaded {
            Ok(config) => {
                info!(path = %self.path.display(), "web configuration read");
                Some(Arc::new(config))
            }
            Err(error) => {
                error!(path = %self.path.display(), error = in_full(&error), "http serves nothing");
                None
            }
        };
        state.config.clone()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files
        .iter()
        .map(|path| fs::metadata(path).ok().as_ref().map(stamp))
        .collect()
}

fn stamp(metadata: &Metadata) -> [i64; 6] {
    [
        metadata.ino() as i64,
        metadata.size() as i64,
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    ]
}

/// Reads the file at `path` and those that it names, which are added to `files`.
fn load(path: &Path, files: &mut Vec<PathBuf>) -> Result<WebConfig, WebConfigError> {
    let raw: Option<Raw> =
        serde_yaml::from_str(&text(path)?).map_err(|source| WebConfigError::Syntax {
            path: path.to_owned(),
            source,
        })?;
    let Raw {
        tls_server_config,
        basic_auth_users,
    } = raw.unwrap_or_default();
    let hashes = basic_auth_users.unwrap_or_default();
    for (user, hash) in &hashes {
        bcrypt::HashParts::from_str(hash).map_err(|source| WebConfigError::Hash {
            user: user.clone(),
            source,
        })?;
    }
    // Relative paths are relative to the file.
    let folder = path.parent().unwrap_or(Path::new(""));
    let tls = tls_server_config.map(|raw| raw.relative_to(folder));
    if let Some(tls) = &tls {
        files.extend([tls.cert_file.clone(), tls.key_file.clone()]);
        files.extend(tls.client_ca_file.clone());
    }
    files.iter().try_for_each(|file| judge(file))?;
    let tls = tls.as_ref().map(acceptor).transpose()?;
    Ok(WebConfig {
        tls,
        users: Arc::new(Users::new(hashes)),
    })
}

/// Refuses what others than root and the agent's user could have written: who may look, and what
/// certificates are shown and believed.
fn judge(path: &Path) -> Result<(), WebConfigError> {
    let metadata = fs::metadata(path).map_err(|source| WebConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let keepers = Keepers::of_process();
    keepers.judge(path, &metadata).map_err(TrustError::from)?;
    Ok(keepers.judge_way(path)?)
}

fn text(path: &Path) -> Result<String, WebConfigError> {
    let read = |source| WebConfigError::Read {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(read)?.len() > MAX_BYTES {
        return Err(WebConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    fs::read_to_string(path).map_err(read)
}

impl RawTls {
    fn relative_to(self, folder: &Path) -> Self {
        let Self {
            cert_file,
            key_file,
            client_auth_type,
            client_ca_file,
            min_version,
        } = self;
        Self {
            cert_file: folder.join(cert_file),
            key_file: folder.join(key_file),
            client_auth_type,
            client_ca_file: client_ca_file.map(|file| folder.join(file)),
            min_version,
        }
    }
}

fn acceptor(raw: &RawTls) -> Result<TlsAcceptor, WebConfigError> {
    let versions: &[&SupportedProtocolVersion] = match raw.min_version {
        MinVersion::TLS12 => &[&TLS12, &TLS13],
        MinVersion::TLS13 => &[&TLS13],
    };
    let chain = certificates(&raw.cert_file)?;
    let key =
        PrivateKeyDer::from_pem_file(&raw.key_file).map_err(|source| WebConfigError::Pem {
            path: raw.key_file.clone(),
            source,
        })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(WebConfigError::Tls)?;
    let builder = match verifier(raw)? {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(WebConfigError::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn verifier(raw: &RawTls) -> Result<Option<Arc<dyn ClientCertVerifier>>, WebConfigError> {
    let kind = raw.client_auth_type;
    let Some(path) = &raw.client_ca_file else {
        return match kind {
            ClientAuth::NoClientCert => Ok(None),
            ClientAuth::VerifyClientCertIfGiven | ClientAuth::RequireAndVerifyClientCert => {
                Err(WebConfigError::NoClientCa { kind })
            }
        };
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(WebConfigError::Tls)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = match kind {
        ClientAuth::NoClientCert => return Err(WebConfigError::UnusedClientCa),
        ClientAuth::VerifyClientCertIfGiven => builder.allow_unauthenticated(),
        ClientAuth::RequireAndVerifyClientCert => builder,
    };
    builder.build().map(Some).map_err(WebConfigError::Verifier)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, WebConfigError> {
    let pem = |source| WebConfigError::Pem {
        path: path.to_owned(),
        source,
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(pem)?
        .collect::<Result<_, _>>()
        .map_err(pem)?;
    if chain.is_empty() {
        return Err(WebConfigError::NoCertificate {
            path: path.to_owned(),
        });
    }
    Ok(chain)
}
