//! The web configuration: TLS, client certificates, basic auth, and what changes while serving.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::lab::{Answer, Lab, exchange};

/// `noc:secret`
const NOC: &str = "Authorization: Basic bm9jOnNlY3JldA==\r\n";
/// `noc:wrong`
const WRONG: &str = "Authorization: Basic bm9jOndyb25n\r\n";
const TLS: &str = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n";

#[tokio::test]
async fn config_that_is_not_there_serves_nothing_until_it_is() {
    let folder = Folder::new();
    let lab = Lab::configured(folder.path("web.yaml")).await;
    assert_eq!(lab.get("/metrics", "").await.status, 0);
    folder.write("web.yaml", "{}");
    assert_eq!(lab.get("/metrics", "").await.status, 200);
}

#[tokio::test]
async fn config_empty_serves_plain_http_to_all() {
    for content in [
        "",
        "{}",
        "# nothing yet\n",
        "tls_server_config:\nbasic_auth_users:\n",
    ] {
        let folder = Folder::new();
        let lab = Lab::configured(folder.write("web.yaml", content)).await;
        assert_eq!(lab.get("/metrics", "").await.status, 200, "{content:?}");
    }
}

#[tokio::test]
async fn config_with_users_wants_the_right_password_on_every_path() {
    let folder = Folder::new();
    let lab = Lab::configured(folder.write("web.yaml", &users())).await;
    for path in [
        "/",
        "/metrics",
        "/metrics/customers",
        "/healthz",
        "/readyz",
        "/nothing",
    ] {
        let answer = lab.get(path, "").await;
        assert_eq!(answer.status, 401, "{path}");
        assert!(
            answer
                .header("www-authenticate")
                .unwrap()
                .starts_with("Basic ")
        );
    }
    assert_eq!(lab.get("/metrics", WRONG).await.status, 401);
    assert_eq!(lab.get("/metrics", NOC).await.status, 200);
    assert_eq!(lab.get("/metrics", WRONG).await.status, 401);
}

#[tokio::test]
async fn config_with_tls_serves_those_who_trust_the_ca() {
    let folder = Folder::new();
    let lab = Lab::configured(folder.write("web.yaml", TLS)).await;
    let answer = folder.https(&lab, &Client::default()).await.unwrap();
    assert_eq!((answer.status, answer.text()), (200, "gate25_metrics 1\n"));
    // Plain HTTP gets nothing.
    assert_eq!(lab.get("/metrics", "").await.status, 0);
    let stranger = Folder::new();
    assert!(stranger.https(&lab, &Client::default()).await.is_err());
}

#[tokio::test]
async fn config_with_tls_and_users_wants_both() {
    let folder = Folder::new();
    let lab = Lab::configured(folder.write("web.yaml", &format!("{TLS}{}", users()))).await;
    let with = |headers| Client {
        headers,
        ..Client::default()
    };
    assert_eq!(folder.https(&lab, &with("")).await.unwrap().status, 401);
    assert_eq!(folder.https(&lab, &with(WRONG)).await.unwrap().status, 401);
    assert_eq!(folder.https(&lab, &with(NOC)).await.unwrap().status, 200);
}

#[tokio::test]
async fn config_with_client_ca_wants_a_certificate_of_it() {
    let folder = Folder::new();
    let stranger = Folder::new();
    for (kind, without) in [
        ("RequireAndVerifyClientCert", 0),
        ("VerifyClientCertIfGiven", 200),
    ] {
        let config = format!("{TLS}  client_auth_type: {kind}\n  client_ca_file: ca.crt\n");
        let lab = Lab::configured(folder.write("web.yaml", &config)).await;
        let showing = |folder: &Folder| Client {
            certificate: Some((folder.path("client.crt"), folder.path("client.key"))),
            ..Client::default()
        };
        let status = |answer: std::io::Result<Answer>| answer.map_or(0, |answer| answer.status);
        assert_eq!(
            status(folder.https(&lab, &showing(&folder)).await),
            200,
            "{kind}"
        );
        assert_eq!(
            status(folder.https(&lab, &showing(&stranger)).await),
            0,
            "{kind}"
        );
        assert_eq!(
            status(folder.https(&lab, &Client::default()).await),
            without,
            "{kind}"
        );
    }
}

#[tokio::test]
async fn config_with_min_version_refuses_older_clients() {
    let folder = Folder::new();
    let old = Client {
        version: &rustls::version::TLS12,
        ..Client::default()
    };
    let lab = Lab::configured(folder.write("web.yaml", TLS)).await;
    assert_eq!(folder.https(&lab, &old).await.unwrap().status, 200);
    let config = format!("{TLS}  min_version: TLS13\n");
    let lab = Lab::configured(folder.write("web.yaml", &config)).await;
    assert!(folder.https(&lab, &old).await.is_err());
    assert_eq!(
        folder.https(&lab, &Client::default()).await.unwrap().status,
        200
    );
}

#[tokio::test]
async fn config_that_is_not_valid_serves_nothing_until_it_is_mended() {
    for content in [
        "unknown_key: 1\n",
        "tls_server_config: {cert_file: server.crt, key_file: server.key, ciphers: all}\n",
        "tls_server_config: {cert_file: server.crt}\n",
        "tls_server_config: {cert_file: missing.crt, key_file: server.key}\n",
        "tls_server_config: {cert_file: server.key, key_file: server.key}\n",
        "tls_server_config: {cert_file: server.crt, key_file: client.key}\n",
        &format!("{TLS}  min_version: TLS10\n"),
        &format!("{TLS}  client_auth_type: RequireAnyClientCert\n"),
        &format!("{TLS}  client_auth_type: RequireAndVerifyClientCert\n"),
        &format!("{TLS}  client_ca_file: ca.crt\n"),
        "basic_auth_users: {noc: plaintext}\n",
        "basic_auth_users: {noc: a, noc: b}\n",
        "not: [a\n",
    ] {
        let folder = Folder::new();
        let lab = Lab::configured(folder.write("web.yaml", content)).await;
        assert_eq!(lab.get("/metrics", "").await.status, 0, "{content}");
        assert!(
            folder.https(&lab, &Client::default()).await.is_err(),
            "{content}"
        );
        folder.write("web.yaml", TLS);
        assert_eq!(
            folder.https(&lab, &Client::default()).await.unwrap().status,
            200,
            "{content}"
        );
    }
}

#[tokio::test]
async fn config_that_others_may_write_serves_nothing_until_it_is_mended() {
    for name in ["web.yaml", "server.crt", "server.key"] {
        let folder = Folder::new();
        let lab = Lab::configured(folder.write("web.yaml", TLS)).await;
        let file = folder.path(name);
        for (mode, served) in [(0o666, false), (0o600, true)] {
            let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&file, permissions).unwrap();
            let answer = folder.https(&lab, &Client::default()).await;
            assert_eq!(answer.is_ok(), served, "{name} {mode:o}");
        }
    }
}

#[tokio::test]
async fn config_changed_while_serving_applies_to_the_next_connection() {
    let folder = Folder::new();
    let path = folder.write("web.yaml", &users());
    let lab = Lab::configured(path.clone()).await;
    assert_eq!(lab.get("/metrics", NOC).await.status, 200);
    assert_eq!(lab.get("/metrics", "").await.status, 401);
    folder.write("web.yaml", "{}");
    assert_eq!(lab.get("/metrics", "").await.status, 200);
    folder.write("web.yaml", "nonsense: 1");
    assert_eq!(lab.get("/metrics", "").await.status, 0);
    folder.write("web.yaml", &users());
    assert_eq!(lab.get("/metrics", NOC).await.status, 200);
    // Nobody opens the door by losing the key.
    fs::remove_file(path).unwrap();
    assert_eq!(lab.get("/metrics", "").await.status, 0);
    assert_eq!(lab.get("/metrics", NOC).await.status, 0);
}

#[tokio::test]
async fn certificate_renewed_while_serving_applies_to_the_next_connection() {
    let folder = Folder::new();
    let lab = Lab::configured(folder.write("web.yaml", TLS)).await;
    assert_eq!(
        folder.https(&lab, &Client::default()).await.unwrap().status,
        200
    );
    let renewed = Folder::new();
    for name in ["server.crt", "server.key"] {
        fs::copy(renewed.path(name), folder.path(name)).unwrap();
    }
    assert!(folder.https(&lab, &Client::default()).await.is_err());
    assert_eq!(
        renewed
            .https(&lab, &Client::default())
            .await
            .unwrap()
            .status,
        200
    );
}

/// A client of the server.
struct Client {
    headers: &'static str,
    certificate: Option<(PathBuf, PathBuf)>,
    version: &'static SupportedProtocolVersion,
}

impl Default for Client {
    fn default() -> Self {
        Self {
            headers: "",
            certificate: None,
            version: &rustls::version::TLS13,
        }
    }
}

/// A folder with a CA of its own, a server's and a client's certificate and keys.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        folder.write("ca.crt", &ca.pem());
        for (name, subject) in [("server", "localhost"), ("client", "prometheus")] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![subject.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            folder.write(&format!("{name}.crt"), &certificate.pem());
            folder.write(&format!("{name}.key"), &key.serialize_pem());
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Fetches the metrics over TLS, trusting this folder's CA.
    async fn https(&self, lab: &Lab, client: &Client) -> std::io::Result<Answer> {
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.path("ca.crt"))).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[client.version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match &client.certificate {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let key = PrivateKeyDer::from_pem_file(key).unwrap();
                builder
                    .with_client_auth_cert(vec![certificate(chain)], key)
                    .unwrap()
            }
        };
        let stream = TcpStream::connect(lab.address).await?;
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        Ok(exchange(stream, "GET", "/metrics", client.headers).await)
    }
}

fn certificate(path: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

fn users() -> String {
    format!(
        "basic_auth_users:\n  noc: {}\n",
        bcrypt::hash("secret", 4).unwrap()
    )
}
