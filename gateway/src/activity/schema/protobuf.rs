//! Protobuf: a value is one message of the schema's file, named by indexes in front of it.
//!
//! Input: values in the registry's format, whole. Output: JSON as proto3 maps it, but with 64-bit integers as numbers.

use prost_reflect::{DynamicMessage, SerializeOptions, Value};
use schema_registry_converter::async_impl::proto_decoder::ProtoDecoder;
use schema_registry_converter::async_impl::schema_registry::SrSettings;
use schema_registry_converter::error::SRCError;

use super::{Json, PREFIX, unwritten};

/// Field of an activity whose members are parameters of texts.
const PARAMETERS: &str = "data";

/// One schema, compiled.
pub(super) struct ProtobufSchema {
    /// Asks the registry nothing once it has its schema.
    decoder: ProtoDecoder,
}

impl ProtobufSchema {
    /// Fetches a schema with those that it imports, and compiles it.
    pub(super) async fn load(settings: SrSettings, id: u32) -> Result<Self, SRCError> {
        let decoder = ProtoDecoder::new(settings);
        // The first message without any field: the decoder compiles when it is asked for a value.
        let mut empty = [0; PREFIX + 1];
        empty[1..PREFIX].copy_from_slice(&id.to_be_bytes());
        decoder.decode_with_context(Some(&empty)).await?;
        Ok(Self { decoder })
    }

    /// # Errors
    /// What is wrong, without anything of the value.
    pub(super) async fn to_json(&self, value: &[u8]) -> Result<Vec<u8>, String> {
        match self.decoder.decode(Some(value)).await {
            Ok(Value::Message(message)) => write(message),
            Ok(_) => Err("the value is no message".into()),
            // The cause may quote the value.
            Err(error) => Err(error.error),
        }
    }
}

/// A field that is not set is left out, as one that a producer of JSON does not write. In `data` it is written with its default where proto3 cannot tell the two
/// apart: the zero of a counter is a parameter.
fn write(mut message: DynamicMessage) -> Result<Vec<u8>, String> {
    let options = SerializeOptions::new().stringify_64_bit_integers(false);
    let parameters = match message.get_field_by_name(PARAMETERS).as_deref() {
        Some(Value::Message(data)) if message.has_field_by_name(PARAMETERS) => {
            let with_zeros = options.clone().skip_default_fields(false);
            Some(text(data, &with_zeros)?)
        }
        _ => None,
    };
    let Some(parameters) = parameters else {
        return text(&message, &options);
    };
    message.clear_field_by_name(PARAMETERS);
    let mut whole = text(&message, &options)?;
    // The closing brace.
    whole.pop();
    if whole.len() > 1 {
        whole.push(b',');
    }
    whole.extend_from_slice(b"\"data\":");
    whole.extend_from_slice(&parameters);
    whole.push(b'}');
    Ok(whole)
}

fn text(message: &DynamicMessage, options: &SerializeOptions) -> Result<Vec<u8>, String> {
    let mut json = Json::default();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut json), options)
        .map_err(unwritten)?;
    Ok(json.0)
}
