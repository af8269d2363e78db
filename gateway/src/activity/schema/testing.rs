//! A registry of schemas in memory, with the part of Confluent's API that is used here, and its faults.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use parking_lot::Mutex;
use serde_json::{Value, json};

/// How the registry answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Answering {
    #[default]
    Well,
    /// With this status and a page of a proxy.
    Page(u16),
    /// With this status and the code as the registry writes it.
    Error(u16),
}

#[derive(Default)]
pub(crate) struct RegistryStub {
    schemas: Mutex<HashMap<u32, Value>>,
    subjects: Mutex<HashMap<String, Value>>,
    answering: Mutex<Answering>,
    authorization: Mutex<Option<String>>,
    asked: AtomicUsize,
}

impl RegistryStub {
    /// Returns it with its URL.
    pub(crate) async fn start() -> (Arc<Self>, String) {
        let stub = Arc::new(Self::default());
        let routes = axum::Router::new()
            .route("/schemas/ids/{id}", get(Self::by_id))
            .route(
                "/subjects/{subject}/versions/{version}",
                get(Self::by_subject),
            )
            .with_state(stub.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        (stub, url)
    }

    pub(crate) fn add(&self, id: u32, kind: &str, schema: &str, references: Value) {
        let known = json!({"schema": schema, "schemaType": kind, "references": references});
        self.schemas.lock().insert(id, known);
    }

    /// Adds version 1 of a subject, which a reference names.
    pub(crate) fn add_subject(&self, subject: &str, kind: &str, schema: &str, references: Value) {
        let known = json!({
            "subject": subject, "version": 1, "id": 1000, "schema": schema, "schemaType": kind, "references": references,
        });
        self.subjects.lock().insert(subject.to_owned(), known);
    }

    pub(crate) fn answer(&self, answering: Answering) {
        *self.answering.lock() = answering;
    }

    /// Refuses every request without this `Authorization`.
    pub(crate) fn require(&self, authorization: &str) {
        *self.authorization.lock() = Some(authorization.to_owned());
    }

    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn by_id(
        State(stub): State<Arc<Self>>,
        Path(id): Path<u32>,
        headers: HeaderMap,
    ) -> Response {
        let found = stub.schemas.lock().get(&id).cloned();
        stub.respond(found, 40403, &headers)
    }

    async fn by_subject(
        State(stub): State<Arc<Self>>,
        Path((subject, version)): Path<(String, u32)>,
        headers: HeaderMap,
    ) -> Response {
        let found = stub.subjects.lock().get(&subject).cloned();
        stub.respond(found.filter(|_| version == 1), 40401, &headers)
    }

    fn respond(&self, found: Option<Value>, missing: u32, headers: &HeaderMap) -> Response {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let error = |status: u16, code: u32| {
            let body = json!({"error_code": code, "message": "no"});
            (StatusCode::from_u16(status).unwrap(), Json(body)).into_response()
        };
        match *self.answering.lock() {
            Answering::Well => {}
            Answering::Page(status) => {
                let page = Html("<html>a proxy</html>");
                return (StatusCode::from_u16(status).unwrap(), page).into_response();
            }
            Answering::Error(status) => return error(status, status.into()),
        }
        let given = headers
            .get("authorization")
            .map(|value| value.to_str().unwrap().to_owned());
        if self
            .authorization
            .lock()
            .as_ref()
            .is_some_and(|needed| given.as_ref() != Some(needed))
        {
            return error(401, 401);
        }
        match found {
            Some(schema) => Json(schema).into_response(),
            None => error(404, missing),
        }
    }
}

/// A value in the registry's format.
pub(crate) fn with_id(id: u32, payload: &[u8]) -> Vec<u8> {
    [&[0], id.to_be_bytes().as_slice(), payload].concat()
}

/// An Avro `int` or `long`: a zigzag number, seven bits a byte.
pub(crate) fn avro_long(number: i64) -> Vec<u8> {
    let mut left = ((number << 1) ^ (number >> 63)) as u64;
    let mut bytes = Vec::new();
    while left > 0x7f {
        bytes.push(left as u8 | 0x80);
        left >>= 7;
    }
    bytes.push(left as u8);
    bytes
}

/// An Avro `string` or `bytes`.
pub(crate) fn avro_bytes(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [avro_long(bytes.len() as i64).as_slice(), bytes].concat()
}

/// A field of Protobuf that is a text, bytes or a message, with a number below 16.
pub(crate) fn proto_bytes(field: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    assert!(field < 16 && bytes.len() < 128);
    [&[field << 3 | 2, bytes.len() as u8], bytes].concat()
}
