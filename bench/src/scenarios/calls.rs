//! Single calls of libraries, in this process and on one thread: the check of a token, and the sealing of a message. They are what decides which library
//! is used, so each stands beside the one that it is held against.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aes_gcm::aead::{AeadInOut, KeyInit as _};
use anyhow::{Context as _, Result, ensure};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use signal_gateway::auth::{Authenticator, Revocations};
use signal_gateway::clock::SystemClock;
use signal_gateway::config::load_live;
use signal_gateway::metrics::Metrics;
use signal_tests::Issuer;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Sizes;
use crate::report::{Measurement, Report};
use crate::server::Testbed;

const IV: [u8; 12] = [7; 12];

/// Microseconds of one call, over `calls` of them.
fn time(calls: usize, mut call: impl FnMut(usize)) -> f64 {
    let begun = Instant::now();
    for n in 0..calls {
        call(n);
    }
    begun.elapsed().as_secs_f64() * 1e6 / calls as f64
}

/// Sealing with the `aes-gcm` crate, compared with ring.
pub(crate) fn run_seal(testbed: &Testbed, report: &mut Report) -> Result<()> {
    seal(&testbed.sizes, report)
}

fn seal(sizes: &Sizes, report: &mut Report) -> Result<()> {
    let calls = if sizes.small { 1_000 } else { 500_000 };
    let ring = LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM, &[1; 32])
            .map_err(|_| anyhow::anyhow!("32 bytes are a key"))?,
    );
    let crates = aes_gcm::Aes256Gcm::new(&[1; 32].into());
    for bytes in [128, 1024] {
        let message = vec![b'x'; bytes];
        let mut scratch = Vec::with_capacity(bytes + 16);
        let mut sealed = [Vec::new(), Vec::new()];
        let (mut own, mut base) = (Vec::new(), Vec::new());
        for _ in 0..sizes.short_rounds {
            own.push(time(calls, |_| {
                scratch.clear();
                scratch.extend_from_slice(&message);
                let tag = crates
                    .encrypt_inout_detached(&IV.into(), &[], scratch.as_mut_slice().into())
                    .expect("a short message");
                scratch.extend_from_slice(&tag);
                std::hint::black_box(&scratch);
            }));
            sealed[0].clone_from(&scratch);
            base.push(time(calls, |_| {
                scratch.clear();
                scratch.extend_from_slice(&message);
                let nonce = Nonce::assume_unique_for_key(IV);
                let tag = ring
                    .seal_in_place_separate_tag(nonce, Aad::empty(), &mut scratch)
                    .expect("a short message");
                scratch.extend_from_slice(tag.as_ref());
                std::hint::black_box(&scratch);
            }));
            sealed[1].clone_from(&scratch);
        }
        ensure!(sealed[0] == sealed[1], "both seal alike");
        let line = Measurement::new(format!("aes-gcm, {bytes} B"), "us per seal", &own);
        report.add(&line.against("ring", &base));
    }
    Ok(())
}

/// The check of a token that was never seen, compared with the bare signature; and of one that is remembered.
pub(crate) fn run_token(testbed: &Testbed, report: &mut Report) -> Result<()> {
    testbed.runtime.block_on(token(&testbed.sizes, report))
}

async fn token(sizes: &Sizes, report: &mut Report) -> Result<()> {
    let calls = if sizes.small { 200 } else { 4000 };
    let issuer = Issuer::start().await;
    let dir = tempfile::tempdir()?;
    let keys = dir.path().join("keys.json");
    std::fs::write(&keys, issuer.key_set())?;
    let live = load_live(&format!(
        "[[jwks.sources]]\nname = \"main\"\nissuer = {:?}\naudiences = [{:?}]\nalgorithms = [\"ES256\"]\nkeys_file = {keys:?}\n",
        issuer.name(),
        signal_tests::issuer::AUDIENCE,
    ))?;
    let (_live, followed) = watch::channel(Arc::new(live));
    let clock = Arc::new(SystemClock);
    let shutdown = CancellationToken::new();
    let revocations = Revocations::new(clock.clone());
    // Nobody revokes here; while revocations are not known, no token is accepted.
    revocations.follow();
    let (auth, task) = Authenticator::start(
        followed,
        clock.clone(),
        Metrics::new(),
        revocations,
        shutdown.clone(),
    );
    for _ in 0..500 {
        if auth.unready_reason().is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let key: serde_json::Value = serde_json::from_str(&issuer.key_set())?;
    let key = &key["keys"][0];
    let part = |name: &str| base64url(key[name].as_str().unwrap_or_default());
    let key = [vec![4], part("x")?, part("y")?].concat();
    let (mut own, mut base, mut remembered) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..sizes.rounds {
        let tokens: Vec<String> = (0..calls).map(|n| issuer.token(&n.to_string())).collect();
        let mut parts = Vec::new();
        for token in &tokens {
            let (message, signature) = token.rsplit_once('.').context("a token")?;
            parts.push((message, base64url(signature)?));
        }
        let begun = Instant::now();
        for token in &tokens {
            auth.verify(token).await?;
        }
        own.push(begun.elapsed().as_secs_f64() * 1e6 / calls as f64);
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key);
        base.push(time(calls, |n| {
            let (message, signature) = &parts[n];
            key.verify(message.as_bytes(), signature)
                .expect("a good signature");
        }));
        remembered.push(time(calls, |n| {
            assert!(
                auth.verify_cached(&tokens[n])
                    .is_some_and(|found| found.is_ok())
            );
        }));
    }
    shutdown.cancel();
    task.await?;
    let line = Measurement::new("a new ES256 token", "us per token", &own);
    report.add(&line.against("bare signature", &base));
    report.add(&Measurement::new(
        "a remembered token",
        "us per token",
        &remembered,
    ));
    Ok(())
}

fn base64url(text: &str) -> Result<Vec<u8>> {
    base64_simd::URL_SAFE_NO_PAD
        .decode_to_vec(text.as_bytes())
        .map_err(|_| anyhow::anyhow!("it is not base64url"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_calls_that_need_no_server_can_be_timed() {
        let mut report = Report::default();
        token(&Sizes::small(), &mut report).await.expect("token");
        seal(&Sizes::small(), &mut report).expect("seal");
        assert!(report.is_good());
    }
}
