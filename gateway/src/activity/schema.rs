//! Records whose values carry the id of a schema: read with that schema, and written as the JSON that [`super::decode`] reads.
//!
//! Input: records of `kafka.registry.topics`, and a registry with Confluent's API. Output: the same record with its value in JSON, or the
//! [`Poison`] that says why there is none; or that the registry is away, which is no fault of the record.
//!
//! In the registry's format a value begins with a zero byte and the id, four bytes with the highest first. A value that begins otherwise is read as
//! it is, since no JSON text begins with a zero: producers may change over one by one.
//!
//! An id stands for one schema for ever, so what is known of it is kept. The converter's own decoders are used for one schema each, because their
//! caches have no bound.

mod avro;
mod protobuf;

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use schema_registry_converter::async_impl::schema_registry::{
    SrSettings, get_referenced_schema, get_schema_by_id,
};
use schema_registry_converter::error::SRCError;
use schema_registry_converter::schema_registry_common::{RawError, RegisteredSchema, SchemaType};
use tokio::time::Instant;
use url::Url;

use self::avro::AvroSchema;
use self::protobuf::ProtobufSchema;
use super::decode::Record;
use super::poison::{DeadLetterReason, Poison};
use crate::config::{KafkaRegistry, read_secret, read_username};
use crate::outgoing;

/// Most schemas that are kept. A topic has a few; the bound is for producers that use one each.
const MAX_SCHEMAS: usize = 256;
/// Most schemas that one refers to, by way of others too.
const MAX_REFERENCES: usize = 64;
/// How long the registry's word holds that it has no schema of an id.
const MISSING_FOR: Duration = Duration::from_secs(10);
/// Longest time for one answer of the registry.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Longest JSON text that a value becomes, in bytes: names and symbols of a schema make it longer than the value.
const MAX_JSON_BYTES: usize = 32 << 20;
/// The zero byte and the id.
const PREFIX: usize = 5;

/// Reads records with the schemas of a registry.
pub(super) struct Registry {
    config: KafkaRegistry,
    known: Mutex<Known>,
}

/// Why a record has no JSON.
#[derive(Debug)]
pub(super) enum SchemaError {
    /// It will never have one.
    Poison(Poison),
    /// The registry did not say which schema it has.
    Away(RegistryError),
}

/// The registry cannot be asked, or answers with something else than schemas.
#[derive(Debug, thiserror::Error)]
#[error("the schema registry: {0}")]
pub(super) struct RegistryError(String);

impl Registry {
    /// `None` where no topic needs one.
    pub(super) fn new(config: &KafkaRegistry) -> Option<Self> {
        (!config.url.is_empty()).then(|| Self {
            config: config.clone(),
            known: Mutex::default(),
        })
    }

    /// Whether records of this topic may carry ids of schemas.
    pub(super) fn covers(&self, topic: &str) -> bool {
        self.config.topics.iter().any(|covered| covered == topic)
    }

    /// The record with its value in JSON; `None` if its value carries no id. Dropping the future changes nothing.
    pub(super) async fn read(&self, record: &Record) -> Result<Option<Record>, SchemaError> {
        let Some(value @ [0, ..]) = record.value.as_deref() else {
            return Ok(None);
        };
        let Some((prefix, payload)) = value.split_at_checked(PREFIX) else {
            return Err(mismatch("the value ends within the id of its schema").into());
        };
        let id = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]);
        let json = match &*self.schema(id).await? {
            Schema::Avro(schema) => schema.to_json(payload),
            Schema::Protobuf(schema) => schema.to_json(value).await,
            Schema::Json => Ok(payload.to_vec()),
            Schema::Missing(poison) => return Err(SchemaError::Poison(poison.clone())),
            Schema::Unusable(why) => Err(why.clone()),
        };
        match json {
            Ok(json) => Ok(Some(as_json(record, json))),
            Err(why) => Err(mismatch(&format!("schema {id}: {why}")).into()),
        }
    }

    /// Answers when the registry does, be it that it has no schema 0.
    ///
    /// # Errors
    /// It is away.
    pub(super) async fn ping(&self) -> Result<(), RegistryError> {
        match self.fetch(0).await {
            Ok(_) | Err(SchemaError::Poison(_)) => Ok(()),
            Err(SchemaError::Away(error)) => Err(error),
        }
    }

    async fn schema(&self, id: u32) -> Result<Arc<Schema>, SchemaError> {
        if let Some(schema) = self.known.lock().get(id, Instant::now()) {
            return Ok(schema);
        }
        // Lanes that miss the same id at once each ask; none waits for the question of another.
        let schema = match self.fetch(id).await {
            Ok(schema) => schema,
            Err(SchemaError::Poison(poison)) => Schema::Missing(poison),
            Err(away) => return Err(away),
        };
        let schema = Arc::new(schema);
        self.known.lock().put(id, schema.clone(), Instant::now());
        Ok(schema)
    }

    async fn fetch(&self, id: u32) -> Result<Schema, SchemaError> {
        let config = self.config.clone();
        let settings = tokio::task::spawn_blocking(move || settings(&config)).await;
        let settings = settings
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|why| SchemaError::Away(RegistryError(why)))?;
        let missing = || format!("the registry has no schema {id}");
        let registered = get_schema_by_id(id, &settings)
            .await
            .map_err(|error| failed(&error, missing))?;
        Ok(match &registered.schema_type {
            SchemaType::Json => Schema::Json,
            SchemaType::Avro => {
                let references = references(&settings, &registered).await?;
                AvroSchema::parse(&registered.schema, &references)
                    .map_or_else(Schema::Unusable, |schema| Schema::Avro(Box::new(schema)))
            }
            SchemaType::Protobuf => match ProtobufSchema::load(settings, id).await {
                Ok(schema) => Schema::Protobuf(Box::new(schema)),
                Err(error) if is_of_registry(&error) => {
                    return Err(failed(&error, || no_reference(id)));
                }
                Err(error) => Schema::Unusable(shortened(&error.to_string())),
            },
            other => Schema::Unusable(format!(
                "its type {} is not known",
                shortened(&name_of(other))
            )),
        })
    }
}

/// What the registry has for an id.
enum Schema {
    Avro(Box<AvroSchema>),
    Protobuf(Box<ProtobufSchema>),
    /// Values are JSON already. They are not held against the schema: an activity is checked member by member.
    Json,
    Missing(Poison),
    /// Why no value can be read with it.
    Unusable(String),
}

/// Schemas by id; the one that was not used for longest makes room.
#[derive(Default)]
struct Known {
    schemas: HashMap<u32, KnownSchema>,
    uses: u64,
}

struct KnownSchema {
    schema: Arc<Schema>,
    last_use: u64,
    since: Instant,
}

impl Known {
    fn get(&mut self, id: u32, now: Instant) -> Option<Arc<Schema>> {
        self.uses += 1;
        let known = self.schemas.get_mut(&id)?;
        if matches!(*known.schema, Schema::Missing(_)) && now - known.since > MISSING_FOR {
            return None;
        }
        known.last_use = self.uses;
        Some(known.schema.clone())
    }

    fn put(&mut self, id: u32, schema: Arc<Schema>, since: Instant) {
        if self.schemas.len() >= MAX_SCHEMAS && !self.schemas.contains_key(&id) {
            let unused = self.schemas.iter().min_by_key(|(_, known)| known.last_use);
            if let Some(unused) = unused.map(|(id, _)| *id) {
                self.schemas.remove(&unused);
            }
        }
        let last_use = self.uses;
        self.schemas.insert(
            id,
            KnownSchema {
                schema,
                last_use,
                since,
            },
        );
    }
}

/// Credentials and authorities as their files are now: a schema is asked for once.
fn settings(config: &KafkaRegistry) -> Result<SrSettings, String> {
    let url: Url = config
        .url
        .parse()
        .map_err(|_| "kafka.registry.url is no URL".to_owned())?;
    let client = outgoing::client(&url, &config.ca_file)
        .map_err(|why| format!("kafka.registry.ca_file cannot be used: {why}"))?;
    let mut settings = SrSettings::new_builder(config.url.trim_end_matches('/').to_owned());
    settings.set_timeout(ANSWER_LIMIT);
    let secret = |name: &str, file| {
        read_secret(file).map_err(|error| format!("kafka.registry.{name} cannot be read: {error}"))
    };
    if let Some(token) = secret("token_file", &config.token_file)? {
        settings.set_token_authorization(token.expose());
    } else if let Some(password) = secret("password_file", &config.password_file)? {
        let username = read_username(&config.username, &config.username_file)
            .map_err(|error| format!("kafka.registry.username_file cannot be read: {error}"))?;
        settings.set_basic_authorization(&username, Some(password.expose()));
    }
    settings
        .build_with(client)
        .map_err(|error| causes_without_url(&error))
}

/// The texts of the schemas that one refers to, and those that they refer to, each once.
async fn references(
    settings: &SrSettings,
    schema: &RegisteredSchema,
) -> Result<Vec<String>, SchemaError> {
    let mut texts = Vec::new();
    let mut seen = Vec::new();
    let mut left = schema.references.clone();
    while let Some(reference) = left.pop() {
        let key = (reference.subject.clone(), reference.version);
        if seen.contains(&key) {
            continue;
        }
        if texts.len() == MAX_REFERENCES {
            let detail = format!(
                "schema {} refers to more than {MAX_REFERENCES} others",
                schema.id
            );
            return Err(SchemaError::Poison(Poison::new(
                DeadLetterReason::SchemaMismatch,
                detail,
            )));
        }
        let found = get_referenced_schema(settings, &reference)
            .await
            .map_err(|error| failed(&error, || no_reference(schema.id)))?;
        seen.push(key);
        left.extend(found.references);
        texts.push(found.schema);
    }
    Ok(texts)
}

fn name_of(kind: &SchemaType) -> String {
    match kind {
        SchemaType::Other(name) => name.clone(),
        known => format!("{known:?}"),
    }
}

fn no_reference(id: u32) -> String {
    format!("schema {id} refers to one that the registry does not have")
}

/// Whether an error tells of the registry, and not of the schema that it gave.
fn is_of_registry(error: &SRCError) -> bool {
    error.retriable
        || error
            .source()
            .is_some_and(|source| source.is::<RawError>() || source.is::<reqwest::Error>())
}

/// A question that was not answered with a schema. Only the registry's own word that it has none makes poison: a proxy, a wrong path and a missing right
/// have an HTTP status too.
fn failed(error: &SRCError, missing: impl FnOnce() -> String) -> SchemaError {
    let code = error
        .source()
        .and_then(|source| source.downcast_ref::<RawError>())
        .map_or(0, |raw| raw.error_code);
    // 40401, 40402 and 40403 stand for a subject, a version and a schema that are not there.
    if code / 100 == 404 {
        return SchemaError::Poison(Poison::new(DeadLetterReason::UnknownSchema, missing()));
    }
    SchemaError::Away(RegistryError(causes_without_url(error)))
}

/// The error with its causes, but for the text that names the URL.
fn causes_without_url(error: &SRCError) -> String {
    let source = error.source();
    let below = match source {
        Some(source) if source.is::<reqwest::Error>() => source.source(),
        source => source,
    };
    match below {
        Some(below) => format!("{}: {}", error.error, outgoing::causes(below)),
        None => error.error.clone(),
    }
}

/// Errors of compilers may quote whole schemas.
fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

fn mismatch(detail: &str) -> Poison {
    Poison::new(DeadLetterReason::SchemaMismatch, detail)
}

impl From<Poison> for SchemaError {
    fn from(poison: Poison) -> Self {
        Self::Poison(poison)
    }
}

/// The record as if its producer had written JSON. A CloudEvent in binary mode names the format of its data in a header; in structured mode the header says
/// that the value is the whole event.
fn as_json(record: &Record, json: Vec<u8>) -> Record {
    let headers = record.headers.iter().map(|(name, value)| {
        let is_structured = value
            .as_deref()
            .is_some_and(|value| value.starts_with(b"application/cloudevents"));
        if name.eq_ignore_ascii_case("content-type") && !is_structured {
            (name.clone(), Some(b"application/json".to_vec()))
        } else {
            (name.clone(), value.clone())
        }
    });
    Record {
        topic: record.topic.clone(),
        key: None,
        value: Some(json),
        headers: headers.collect(),
        ..*record
    }
}

/// A text that grows to [`MAX_JSON_BYTES`] and no further.
#[derive(Default)]
struct Json(Vec<u8>);

impl io::Write for Json {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_JSON_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Said of a value that cannot be written as JSON.
fn unwritten(error: serde_json::Error) -> String {
    if error.is_io() {
        too_long()
    } else {
        "the value cannot be written as JSON".into()
    }
}

fn too_long() -> String {
    format!("the value has more than {MAX_JSON_BYTES} bytes of JSON")
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
