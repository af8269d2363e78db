//! Questions to all live instances, and answers to theirs.
//!
//! Who is live is known from [`super::lease`]. Each is asked on a channel of its own; who does not answer in time is named.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Shared;
use super::intake::{Answer, Asked, Question};
use super::lease::Instance;
use crate::bus::{Answers, Ask, BusError};

/// Most questions of this instance that are open at a time.
pub(super) const MAX_OPEN: usize = 64;

/// Asks these instances.
pub(super) async fn ask(
    shared: &Arc<Shared>,
    ask: &Ask,
    others: Vec<Instance>,
) -> Result<Answers, BusError> {
    let Ok(_open) = shared.asking.try_acquire() else {
        return Err(BusError::Full);
    };
    if others.is_empty() {
        return Ok(Answers::default());
    }
    let question = Question {
        id: rand::random(),
        from: shared.instance.clone(),
        ask: ask.clone(),
    };
    let payload =
        serde_json::to_vec(&question).map_err(|error| BusError::Unavailable(error.to_string()))?;
    let mut expected = shared.intake.expect(question.id, others.len());
    let deadline = Instant::now() + shared.timing.request;
    let published = others
        .iter()
        .map(|other| {
            shared
                .publisher
                .signal(shared.names.ask_of(&other.id), payload.clone())
        })
        .collect::<Vec<_>>();
    let published = join_all(
        published
            .into_iter()
            .map(|published| async { published.ok()?.await.ok()?.ok() }),
    );
    let heard = tokio::time::timeout_at(deadline, published)
        .await
        .unwrap_or_default();

    let mut answers = Answers::default();
    let mut open: HashMap<String, String> = HashMap::new();
    for (at, other) in others.into_iter().enumerate() {
        match heard.get(at).copied().flatten() {
            // Nobody is subscribed there: it is gone, and waiting would not bring it back.
            Some(0) if shared.connector().counts_all_receivers() => {
                answers.missing.push(other.name)
            }
            None => answers.missing.push(other.name),
            Some(_) => drop(open.insert(other.id, other.name)),
        }
    }
    while !open.is_empty() {
        let Ok(Some(Answer { from, reply, .. })) =
            tokio::time::timeout_at(deadline, expected.answers.recv()).await
        else {
            break;
        };
        if let Some(name) = open.remove(&from) {
            answers.replies.push((name, reply));
        }
    }
    answers.missing.extend(open.into_values());
    answers.missing.sort();
    Ok(answers)
}

/// Sends this instance's answers as they come.
pub(super) async fn answer(shared: &Shared, mut asked: mpsc::Receiver<Asked>) {
    let mut waiting = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(Asked { id, from, reply }) = asked.recv() => waiting.push(async move {
                // The asker has given up by then, and an answer that was dropped is none.
                let reply = tokio::time::timeout(shared.timing.request, reply).await.ok()?.ok()?;
                Some((from, Answer { id, from: shared.instance.clone(), reply }))
            }),
            Some(answer) = waiting.next(), if !waiting.is_empty() => {
                let Some((to, answer)) = answer else { continue };
                match serde_json::to_vec(&answer) {
                    Ok(payload) => drop(shared.publisher.signal(shared.names.reply_of(&to), payload)),
                    Err(error) => tracing::error!(%error, "an answer could not be written"),
                }
            }
            else => return,
        }
    }
}
