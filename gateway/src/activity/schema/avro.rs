//! Avro: a value is the binary form of the schema's type; no IO.
//!
//! Input: values without the registry's prefix. Output: JSON in which a union is written as what it holds, bytes are base64, times are RFC 3339, and
//! decimals have all of their digits.
//!
//! A record is read by recursion and its lists as they come, so two kinds of schemas are refused: those that contain themselves, whose values may nest
//! without end, and lists of what takes no bytes, which may be long without being large.

use std::collections::HashSet;
use std::io::Write as _;

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema::{Name, NamesRef, NamespaceRef, ResolvedSchema};
use apache_avro::types::Value;
use chrono::{DateTime, NaiveTime, SecondsFormat, TimeDelta};
use num_bigint::BigInt;
use serde::Serialize;

use super::{Json, MAX_JSON_BYTES, shortened, too_long, unwritten};

/// Largest scale of a decimal that is written out.
const MAX_SCALE: usize = 1000;

/// One schema, with those that it refers to.
pub(super) struct AvroSchema {
    schema: Schema,
    references: Vec<Schema>,
}

impl AvroSchema {
    /// # Errors
    /// Why no value can be read with it.
    pub(super) fn parse(text: &str, references: &[String]) -> Result<Self, String> {
        // For the whole process, at the first call: lists are measured before they are read.
        apache_avro::util::max_allocation_bytes(MAX_JSON_BYTES);
        let (schema, references) = Schema::parse_str_with_list(text, references)
            .map_err(|error| shortened(&error.to_string()))?;
        let references = in_order(references)?;
        let parsed = Self { schema, references };
        let resolved = parsed.resolved()?;
        let mut walk = Walk {
            names: resolved.get_names(),
            within: Vec::new(),
            good: HashSet::new(),
        };
        walk.check(&parsed.schema, None)?;
        Ok(parsed)
    }

    fn resolved(&self) -> Result<ResolvedSchema<'_>, String> {
        let all = self.references.iter().chain([&self.schema]).collect();
        ResolvedSchema::new_with_schemata(all).map_err(|error| shortened(&error.to_string()))
    }

    /// # Errors
    /// What is wrong, without anything of the value.
    pub(super) fn to_json(&self, mut payload: &[u8]) -> Result<Vec<u8>, String> {
        let resolved = self.resolved()?;
        let value = GenericDatumReader::builder(&self.schema)
            .resolved_writer_schemata(resolved.clone())
            .build()
            .and_then(|reader| reader.read_value(&mut payload))
            .map_err(|_| "the value cannot be read with it".to_owned())?;
        if !payload.is_empty() {
            return Err("there is something behind the value".into());
        }
        let mut writer = Writer {
            names: resolved.get_names(),
            json: Json::default(),
        };
        writer.value(&value, &self.schema, None)?;
        Ok(writer.json.0)
    }
}

/// Puts each schema behind those that it refers to, as names are resolved one schema after the other.
fn in_order(mut left: Vec<Schema>) -> Result<Vec<Schema>, String> {
    let mut ordered: Vec<Schema> = Vec::with_capacity(left.len());
    while !left.is_empty() {
        let ready = left.iter().position(|next| {
            let known = ordered.iter().chain([next]).collect();
            ResolvedSchema::new_with_schemata(known).is_ok()
        });
        match ready {
            Some(at) => ordered.push(left.remove(at)),
            None => return Err("schemas that it refers to refer to each other, or to none".into()),
        }
    }
    Ok(ordered)
}

/// The schema that a name stands for, and the namespace of the names in it.
fn resolve<'s>(
    schema: &'s Schema,
    names: &NamesRef<'s>,
    namespace: NamespaceRef<'s>,
) -> Result<(&'s Schema, NamespaceRef<'s>), String> {
    let schema = match schema {
        Schema::Ref { name } => names
            .get(name.fully_qualified_name(namespace).as_ref())
            .copied()
            .ok_or_else(|| {
                format!(
                    "the type {} is not there",
                    shortened(&name.fullname(namespace))
                )
            })?,
        schema => schema,
    };
    let namespace = schema.name().and_then(Name::namespace).or(namespace);
    Ok((schema, namespace))
}

/// Looks for what no value can be read with safely.
struct Walk<'w, 's> {
    names: &'w NamesRef<'s>,
    /// Records around the one at hand.
    within: Vec<String>,
    good: HashSet<String>,
}

impl Walk<'_, '_> {
    fn check(&mut self, schema: &Schema, namespace: NamespaceRef<'_>) -> Result<(), String> {
        let (schema, namespace) = resolve(schema, self.names, namespace)?;
        match schema {
            Schema::Array(array) => {
                if self.is_empty(&array.items, namespace)? {
                    return Err("it has a list whose elements take no bytes".into());
                }
                self.check(&array.items, namespace)
            }
            Schema::Map(map) => self.check(&map.types, namespace),
            Schema::Union(union) => {
                let mut variants = union.variants().iter();
                variants.try_for_each(|variant| self.check(variant, namespace))
            }
            Schema::Record(record) => {
                let name = record.name.fullname(namespace);
                if self.within.contains(&name) {
                    return Err(format!("its type {} contains itself", shortened(&name)));
                }
                if self.good.contains(&name) {
                    return Ok(());
                }
                self.within.push(name);
                for field in &record.fields {
                    self.check(&field.schema, namespace)?;
                }
                self.good.extend(self.within.pop());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether values take no bytes. Ends also for a type that contains itself: such a one takes bytes somewhere, or has no value at all.
    fn is_empty(&self, schema: &Schema, namespace: NamespaceRef<'_>) -> Result<bool, String> {
        self.is_empty_within(schema, namespace, &mut Vec::new())
    }

    fn is_empty_within(
        &self,
        schema: &Schema,
        namespace: NamespaceRef<'_>,
        within: &mut Vec<String>,
    ) -> Result<bool, String> {
        let (schema, namespace) = resolve(schema, self.names, namespace)?;
        match schema {
            Schema::Null => Ok(true),
            Schema::Fixed(fixed) => Ok(fixed.size == 0),
            Schema::Record(record) => {
                let name = record.name.fullname(namespace);
                if within.contains(&name) {
                    return Ok(true);
                }
                within.push(name);
                for field in &record.fields {
                    if !self.is_empty_within(&field.schema, namespace, within)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}

struct Writer<'w, 's> {
    names: &'w NamesRef<'s>,
    json: Json,
}

impl Writer<'_, '_> {
    fn value(
        &mut self,
        value: &Value,
        schema: &Schema,
        namespace: NamespaceRef<'_>,
    ) -> Result<(), String> {
        let (schema, namespace) = resolve(schema, self.names, namespace)?;
        match (value, schema) {
            (Value::Union(at, value), Schema::Union(union)) => {
                let variant = union.variants().get(*at as usize);
                self.value(
                    value,
                    variant.ok_or("a union has no such variant")?,
                    namespace,
                )
            }
            (Value::Record(fields), Schema::Record(record)) => {
                let fields = fields.iter().zip(&record.fields);
                let members = fields.map(|((name, value), field)| (name, value, &field.schema));
                self.object(members, namespace)
            }
            (Value::Map(map), Schema::Map(schema)) => {
                let members = map
                    .iter()
                    .map(|(name, value)| (name, value, &*schema.types));
                self.object(members, namespace)
            }
            (Value::Array(values), Schema::Array(array)) => {
                self.raw(b"[")?;
                for (at, value) in values.iter().enumerate() {
                    if at > 0 {
                        self.raw(b",")?;
                    }
                    self.value(value, &array.items, namespace)?;
                }
                self.raw(b"]")
            }
            (Value::Decimal(decimal), Schema::Decimal(schema)) => {
                self.decimal(&decimal.clone().into(), schema.scale)
            }
            // apache-avro reads a text that is cut as null.
            (Value::Null, schema) if !matches!(schema, Schema::Null) => {
                Err("the value cannot be read with it".into())
            }
            (value, _) => self.plain(value),
        }
    }

    fn object<'v>(
        &mut self,
        members: impl Iterator<Item = (&'v String, &'v Value, &'v Schema)>,
        namespace: NamespaceRef<'_>,
    ) -> Result<(), String> {
        self.raw(b"{")?;
        for (at, (name, value, schema)) in members.enumerate() {
            if at > 0 {
                self.raw(b",")?;
            }
            self.json(name)?;
            self.raw(b":")?;
            self.value(value, schema, namespace)?;
        }
        self.raw(b"}")
    }

    /// What needs no schema to be written.
    fn plain(&mut self, value: &Value) -> Result<(), String> {
        match value {
            Value::Null => self.raw(b"null"),
            Value::Boolean(value) => self.json(value),
            Value::Int(value) => self.json(value),
            Value::Long(value) => self.json(value),
            Value::Float(value) => self.json(value),
            Value::Double(value) => self.json(value),
            Value::String(text) | Value::Enum(_, text) => self.json(text),
            Value::Bytes(bytes) | Value::Fixed(_, bytes) => {
                self.json(&base64_simd::STANDARD.encode_to_string(bytes))
            }
            Value::Uuid(uuid) => self.json(&uuid.to_string()),
            Value::Date(days) => {
                let at = DateTime::UNIX_EPOCH.checked_add_signed(TimeDelta::days((*days).into()));
                let at = at.ok_or("a date is out of range")?;
                self.json(&at.format("%Y-%m-%d").to_string())
            }
            Value::TimeMillis(ms) => self.time(TimeDelta::milliseconds((*ms).into())),
            Value::TimeMicros(us) => self.time(TimeDelta::microseconds(*us)),
            Value::TimestampMillis(ms) => self.timestamp(DateTime::from_timestamp_millis(*ms)),
            Value::TimestampMicros(us) => self.timestamp(DateTime::from_timestamp_micros(*us)),
            Value::TimestampNanos(ns) => self.timestamp(Some(DateTime::from_timestamp_nanos(*ns))),
            Value::LocalTimestampMillis(ms) => self.local(DateTime::from_timestamp_millis(*ms)),
            Value::LocalTimestampMicros(us) => self.local(DateTime::from_timestamp_micros(*us)),
            Value::LocalTimestampNanos(ns) => self.local(Some(DateTime::from_timestamp_nanos(*ns))),
            Value::Duration(duration) => {
                let (months, days, millis): (u32, u32, u32) = (
                    duration.months().into(),
                    duration.days().into(),
                    duration.millis().into(),
                );
                let (seconds, millis) = (millis / 1000, millis % 1000);
                self.json(&format!("P{months}M{days}DT{seconds}.{millis:03}S"))
            }
            Value::BigDecimal(_) => Err("it has a big-decimal, which has no fixed scale".into()),
            Value::Union(..)
            | Value::Record(_)
            | Value::Map(_)
            | Value::Array(_)
            | Value::Decimal(_) => Err("the value cannot be read with it".into()),
        }
    }

    /// A number with all digits: no double holds every one.
    fn decimal(&mut self, unscaled: &BigInt, scale: usize) -> Result<(), String> {
        if scale > MAX_SCALE {
            return Err(format!("a decimal has a scale above {MAX_SCALE}"));
        }
        let text = unscaled.to_string();
        let (sign, digits) = text
            .strip_prefix('-')
            .map_or(("", text.as_str()), |digits| ("-", digits));
        let digits = format!("{digits:0>width$}", width = scale + 1);
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        let point = if scale > 0 { "." } else { "" };
        self.raw(format!("{sign}{whole}{point}{fraction}").as_bytes())
    }

    fn time(&mut self, since_midnight: TimeDelta) -> Result<(), String> {
        let (time, days) = NaiveTime::MIN.overflowing_add_signed(since_midnight);
        if days != 0 {
            return Err("a time of day is out of range".into());
        }
        self.json(&time.format("%H:%M:%S%.f").to_string())
    }

    fn timestamp(&mut self, at: Option<DateTime<chrono::Utc>>) -> Result<(), String> {
        let at = at.ok_or("a time is out of range")?;
        self.json(&at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }

    fn local(&mut self, at: Option<DateTime<chrono::Utc>>) -> Result<(), String> {
        let at = at.ok_or("a time is out of range")?;
        self.json(&at.format("%Y-%m-%dT%H:%M:%S%.f").to_string())
    }

    fn json<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), String> {
        serde_json::to_writer(&mut self.json, value).map_err(unwritten)
    }

    fn raw(&mut self, text: &[u8]) -> Result<(), String> {
        self.json.write_all(text).map_err(|_| too_long())
    }
}
