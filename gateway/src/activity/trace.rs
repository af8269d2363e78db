//! Continues the trace of a record's producer (W3C Trace Context, header `traceparent`).

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::decode::{Record, TRACEPARENT_HEADER};
use crate::telemetry::SPANS;

struct HeadersOf<'r>(&'r Record);

impl Extractor for HeadersOf<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.header(key)
    }

    fn keys(&self) -> Vec<&str> {
        self.0
            .headers
            .iter()
            .map(|(name, _)| name.as_str())
            .collect()
    }
}

/// The span of a record, from here until the record is done.
pub(super) fn span(record: &Record) -> Span {
    let span = tracing::info_span!(
        target: SPANS,
        "activity",
        otel.kind = "consumer",
        kafka.topic = &*record.topic,
        kafka.partition = record.partition,
        kafka.offset = record.offset
    );
    if record.header(TRACEPARENT_HEADER).is_some() {
        // Without an OpenTelemetry layer there is nothing to continue.
        let _ = span.set_parent(TraceContextPropagator::new().extract(&HeadersOf(record)));
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activity::testing;
    use opentelemetry::trace::{TraceContextExt, TracerProvider};
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn the_trace_of_the_producer_is_continued() {
        let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let id = |header: Option<&str>| {
                let mut record = testing::record("{}");
                record.headers = header
                    .map(|text| {
                        (
                            TRACEPARENT_HEADER.to_owned(),
                            Some(text.as_bytes().to_vec()),
                        )
                    })
                    .into_iter()
                    .collect();
                span(&record)
                    .context()
                    .span()
                    .span_context()
                    .trace_id()
                    .to_string()
            };
            let parent = "0af7651916cd43dd8448eb211c80319c";
            assert_eq!(
                id(Some(&format!("00-{parent}-b7ad6b7169203331-01"))),
                parent
            );
            for other in [None, Some("not a trace"), Some("00-0-0-01")] {
                assert_ne!(id(other), parent, "{other:?}");
            }
        });
    }
}
