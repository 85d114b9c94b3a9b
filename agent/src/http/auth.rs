//! Basic authentication against bcrypt hashes.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

/// Whether a request may be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// It may.
    Granted,
    /// It may not.
    Denied,
}

/// Those who may look, each with the bcrypt hash of the password; nobody means everybody.
#[derive(Debug)]
pub(super) struct Users {
    hashes: Arc<BTreeMap<String, String>>,
    /// Digests of credentials found right. There is one for each user at most, so it needs no
    /// bound.
    verified: Mutex<HashSet<[u8; 32]>>,
    /// A hash takes a tenth of a second of CPU: guessing passwords costs the host one core at most.
    turn: Arc<Semaphore>,
}

impl Default for Users {
    fn default() -> Self {
        Self::new(BTreeMap::new())
    }
}

impl Users {
    /// The users with these hashes, which must be valid.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Self {
        Self {
            hashes: Arc::new(hashes),
            verified: Mutex::default(),
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Judges the `Authorization` of a request.
    pub(super) async fn admit(&self, headers: &HeaderMap) -> Access {
        if self.hashes.is_empty() {
            return Access::Granted;
        }
        let Some((user, password)) = credentials(headers) else {
            return Access::Denied;
        };
        let known = self.hashes.get(&user).cloned();
        let digest = known.as_ref().map(|hash| digest(hash, &user, &password));
        if digest.is_some_and(|digest| self.lock().contains(&digest)) {
            return Access::Granted;
        }
        // An unknown user is tried against somebody's hash: the time tells nothing.
        let Some(hash) = known.or_else(|| self.hashes.values().next().cloned()) else {
            return Access::Denied;
        };
        let right = self.verify(password, hash).await;
        match digest {
            Some(digest) if right => {
                self.lock().insert(digest);
                Access::Granted
            }
            Some(_) | None => Access::Denied,
        }
    }

    async fn verify(&self, password: Vec<u8>, hash: String) -> bool {
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else {
            return false;
        };
        let verified = tokio::task::spawn_blocking(move || {
            let right = bcrypt::verify(password, &hash).unwrap_or(false);
            drop(turn);
            right
        });
        verified.await.unwrap_or(false)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<[u8; 32]>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// User and password of `Authorization: Basic`.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((user, decoded[colon + 1..].to_vec()))
}

/// One digest for one user, password and hash; the lengths keep them apart.
fn digest(hash: &str, user: &str, password: &[u8]) -> [u8; 32] {
    let mut digest = Sha256::new();
    for part in [hash.as_bytes(), user.as_bytes(), password] {
        digest.update((part.len() as u64).to_ne_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// High enough to be measured against everything else that a request takes.
    const COST: u32 = 9;

    #[tokio::test]
    async fn admit_right_password_is_granted_and_quicker_the_second_time() {
        let users = users();
        let first = timed(&users, "noc", "secret").await;
        let second = timed(&users, "noc", "secret").await;
        assert_eq!((first.0, second.0), (Access::Granted, Access::Granted));
        assert!(second.1 * 4 < first.1, "{first:?} {second:?}");
    }

    #[tokio::test]
    async fn admit_wrong_password_or_user_is_denied_and_takes_as_long() {
        let users = users();
        let wrong = timed(&users, "noc", "guess").await;
        let unknown = timed(&users, "nobody", "secret").await;
        assert_eq!((wrong.0, unknown.0), (Access::Denied, Access::Denied));
        assert!(
            unknown.1 * 4 > wrong.1 && wrong.1 * 4 > unknown.1,
            "{wrong:?} {unknown:?}"
        );
        // Somebody else's right password does not count, not even once it is known.
        assert_eq!(timed(&users, "noc", "secret").await.0, Access::Granted);
        assert_eq!(timed(&users, "nobody", "secret").await.0, Access::Denied);
        assert_eq!(timed(&users, "abuse", "secret").await.0, Access::Denied);
    }

    #[tokio::test]
    async fn admit_nothing_or_nonsense_is_denied() {
        let users = users();
        for value in [
            "",
            "Basic",
            "Basic !!!",
            "Bearer bm9jOnNlY3JldA==",
            "Basic bm9j",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            assert_eq!(users.admit(&headers).await, Access::Denied, "{value}");
        }
        assert_eq!(users.admit(&HeaderMap::new()).await, Access::Denied);
    }

    #[tokio::test]
    async fn admit_without_users_is_granted() {
        assert_eq!(
            Users::default().admit(&HeaderMap::new()).await,
            Access::Granted
        );
    }

    fn users() -> Users {
        let hash = |password: &str| bcrypt::hash(password, COST).unwrap();
        let users = [("noc", hash("secret")), ("abuse", hash("other"))];
        Users::new(users.map(|(user, hash)| (user.to_owned(), hash)).into())
    }

    async fn timed(users: &Users, user: &str, password: &str) -> (Access, Duration) {
        let encoded = BASE64_STANDARD.encode(format!("{user}:{password}"));
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("Basic {encoded}").parse().unwrap());
        let began = Instant::now();
        (users.admit(&headers).await, began.elapsed())
    }
}
