//! Questions to all live instances, and answers to theirs.
//!
//! [`super::presence`] lists who is live. Each is asked on a channel of its own; an instance that does not answer in time is reported as missing.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::PubSubCore;
use super::intake::{Answer, OpenQuestion, Question};
use super::presence::Instance;
use crate::bus::{Answers, Ask, BusError};

/// Most questions of this instance that are open at a time.
pub(super) const MAX_OPEN: usize = 64;

/// Asks these instances.
pub(super) async fn ask(
    core: &Arc<PubSubCore>,
    ask: &Ask,
    others: Vec<Instance>,
) -> Result<Answers, BusError> {
    let Ok(_open) = core.asking.try_acquire() else {
        return Err(BusError::Full);
    };
    if others.is_empty() {
        return Ok(Answers::default());
    }
    let question = Question {
        id: rand::random(),
        from: core.instance.clone(),
        ask: ask.clone(),
    };
    let payload =
        serde_json::to_vec(&question).map_err(|error| BusError::Unavailable(error.to_string()))?;
    let mut expected = core.classic.intake.expect(question.id, others.len());
    let deadline = Instant::now() + core.timing.request;
    let published = others
        .iter()
        .map(|other| {
            core.classic
                .publisher
                .signal(core.names.ask_of(&other.id), payload.clone())
        })
        .collect::<Vec<_>>();
    let published = join_all(
        published
            .into_iter()
            .map(|published| async { published.ok()?.await.ok()?.ok() }),
    );
    let receivers = tokio::time::timeout_at(deadline, published)
        .await
        .unwrap_or_default();

    let mut answers = Answers::default();
    let mut open: HashMap<String, String> = HashMap::new();
    for (at, other) in others.into_iter().enumerate() {
        match receivers.get(at).copied().flatten() {
            // It does not subscribe there any more: it is gone, and waiting is of no use.
            Some(0) if core.connector().counts_all_receivers() => answers.missing.push(other.name),
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
pub(super) async fn answer(core: &PubSubCore, mut questions: mpsc::Receiver<OpenQuestion>) {
    let mut waiting = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(OpenQuestion { id, from, reply }) = questions.recv() => waiting.push(async move {
                // Later the asker has given up. A dropped reply is no answer.
                let reply = tokio::time::timeout(core.timing.request, reply).await.ok()?.ok()?;
                Some((from, Answer { id, from: core.instance.clone(), reply }))
            }),
            Some(answer) = waiting.next(), if !waiting.is_empty() => {
                let Some((to, answer)) = answer else { continue };
                match serde_json::to_vec(&answer) {
                    Ok(payload) => drop(core.classic.publisher.signal(core.names.reply_of(&to), payload)),
                    Err(error) => tracing::error!(%error, "encoding an answer for another instance failed"),
                }
            }
            else => return,
        }
    }
}
