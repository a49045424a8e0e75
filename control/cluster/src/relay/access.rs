//! Who may ask, by files that are read again when they change: the certificate and key that nodes
//! see, the authority of nodes' own certificates, and bearer tokens.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};

use super::TlsFiles;
use crate::serve::{self, Denied};

/// Largest file of tokens.
const TOKENS_BYTES_MAX: u64 = 1 << 20;

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", path.display())]
pub struct AccessError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: String,
}

fn unusable(path: &Path) -> impl Fn(&dyn fmt::Display) -> AccessError {
    let path = path.to_owned();
    move |problem| AccessError { path: path.clone(), problem: problem.to_string() }
}

/// The certificate as it was last read.
#[derive(Debug)]
struct Certificate {
    files: TlsFiles,
    key: RwLock<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.key.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn read_key(files: &TlsFiles) -> Result<CertifiedKey, AccessError> {
    let (path, key) = (&files.certificate, &files.key);
    let chain = CertificateDer::pem_file_iter(path)
        .and_then(|all| all.collect::<Result<Vec<_>, _>>())
        .map_err(|error| unusable(path)(&error))?;
    if chain.is_empty() {
        return Err(unusable(path)(&"holds no certificate"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| unusable(key)(&error))?;
    CertifiedKey::from_der(chain, private, &ring::default_provider())
        .map_err(|error| unusable(key)(&error))
}

/// Digests of tokens: comparing them tells nobody how much of a guess was right.
type Tokens = HashSet<[u8; 32]>;

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn read_tokens(path: &Path) -> Result<Tokens, AccessError> {
    let size = std::fs::metadata(path).map_err(|error| unusable(path)(&error))?.len();
    if size > TOKENS_BYTES_MAX {
        return Err(unusable(path)(&format!("is larger than {TOKENS_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unusable(path)(&error))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let tokens: Tokens = lines.map(digest).collect();
    // An empty file would lock out everybody, a moment while it is written.
    if tokens.is_empty() {
        return Err(unusable(path)(&"holds no token"));
    }
    Ok(tokens)
}

/// Who may ask.
#[derive(Debug)]
pub struct Access {
    certificate: Option<Arc<Certificate>>,
    tls: Option<Arc<rustls::ServerConfig>>,
    token_file: Option<PathBuf>,
    tokens: Arc<RwLock<Tokens>>,
}

impl Access {
    /// Reads the files.
    ///
    /// # Errors
    /// [`AccessError`], naming the file.
    pub fn load(files: Option<TlsFiles>, token_file: Option<PathBuf>) -> Result<Self, AccessError> {
        let tokens = token_file.as_deref().map(read_tokens).transpose()?.unwrap_or_default();
        let (mut certificate, mut tls) = (None, None);
        if let Some(files) = files {
            let key = RwLock::new(Arc::new(read_key(&files)?));
            let own = Arc::new(Certificate { files, key });
            tls = Some(Arc::new(server_config(&own)?));
            certificate = Some(own);
        }
        Ok(Self { certificate, tls, token_file, tokens: Arc::new(RwLock::new(tokens)) })
    }

    /// TLS as it is to be served.
    #[must_use]
    pub fn tls(&self) -> Option<Arc<rustls::ServerConfig>> {
        self.tls.clone()
    }

    /// Judges tokens; absent when there is no file of them.
    #[must_use]
    pub fn tokens(&self) -> Option<serve::Access> {
        self.token_file.as_ref()?;
        let tokens = Arc::clone(&self.tokens);
        Some(Arc::new(move |token, _, _| {
            let known = tokens.read().unwrap_or_else(PoisonError::into_inner);
            match token {
                Some(token) if known.contains(&digest(token)) => Ok(()),
                _ => Err(Denied::Unauthorized),
            }
        }))
    }

    /// Reads the files again. What cannot be read stays as it was, and is logged.
    pub fn reload(&self) {
        if let Some(certificate) = &self.certificate {
            match read_key(&certificate.files) {
                Ok(key) => {
                    *certificate.key.write().unwrap_or_else(PoisonError::into_inner) =
                        Arc::new(key);
                }
                Err(error) => tracing::error!(%error, "the old certificate is still served"),
            }
        }
        if let Some(path) = &self.token_file {
            match read_tokens(path) {
                Ok(tokens) => {
                    *self.tokens.write().unwrap_or_else(PoisonError::into_inner) = tokens;
                }
                Err(error) => tracing::error!(%error, "the old tokens still hold"),
            }
        }
    }
}

fn server_config(certificate: &Arc<Certificate>) -> Result<rustls::ServerConfig, AccessError> {
    let files = &certificate.files;
    let provider = Arc::new(ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&files.certificate)(&error))?;
    let builder = match &files.client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let bad = unusable(path);
            let mut roots = RootCertStore::empty();
            let all = CertificateDer::pem_file_iter(path).map_err(|error| bad(&error))?;
            for root in all {
                let root = root.map_err(|error| bad(&error))?;
                roots.add(root).map_err(|error| bad(&error))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| bad(&error))?)
        }
    };
    let own: Arc<dyn ResolvesServerCert> = Arc::clone(certificate) as Arc<dyn ResolvesServerCert>;
    Ok(builder.with_cert_resolver(own))
}
