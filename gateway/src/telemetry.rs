//! Logs as JSON or text, and traces over OTLP where an endpoint is set.
//!
//! Never tokens, keys, plaintext bodies or personal data; the filter is a live setting.

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{self, LogFormat};

/// The target of spans that make up a trace; they are traced whatever the log filter is.
pub const SPANS: &str = "signal_gateway::trace";

/// The process's telemetry; drop it last.
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    provider: Option<SdkTracerProvider>,
}

/// Installs the process's subscriber. Call it once, outside of a runtime, because the exporter has its own thread.
///
/// # Errors
/// A filter that does not parse, an exporter that cannot be built, or a second call.
pub fn init(
    settings: &config::Observability,
    filter: &str,
    instance: &str,
) -> anyhow::Result<Telemetry> {
    let is_traced = !settings.tracing.endpoint.is_empty();
    let (filter, handle) = reload::Layer::new(parse(filter, is_traced)?);
    let lines = match settings.log_format {
        LogFormat::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(std::io::stderr)
            .boxed(),
        LogFormat::Text => {
            let with_colors = std::io::stderr().is_terminal();
            fmt::layer()
                .with_target(false)
                .with_ansi(with_colors)
                .with_writer(std::io::stderr)
                .boxed()
        }
    };
    let provider = exporter(settings, instance)?;
    let traces = provider
        .as_ref()
        .map(|p| tracing_opentelemetry::layer().with_tracer(p.tracer("signal-gateway")));
    tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .with(traces)
        .try_init()?;
    // A panic ends only its task, so it is logged here.
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a task panicked")));
    Ok(Telemetry {
        filter: handle,
        provider,
    })
}

/// Parses the filter for log lines and traces. One filter serves both: with a filter per layer spans are lost, because `tracing::enabled!`, which sqlx
/// calls before each statement, leaves its answer for the next span of the thread (tokio-rs/tracing, tracing-subscriber's `Filtered`).
fn parse(filter: &str, is_traced: bool) -> Result<EnvFilter, ParseError> {
    let filter = EnvFilter::try_new(filter)?;
    // The most specific directive wins, so a strict log filter drops no traces, and without traces their spans are not made.
    Ok(
        filter
            .add_directive(format!("{SPANS}={}", if is_traced { "info" } else { "off" }).parse()?),
    )
}

fn exporter(
    settings: &config::Observability,
    instance: &str,
) -> anyhow::Result<Option<SdkTracerProvider>> {
    if settings.tracing.endpoint.is_empty() {
        return Ok(None);
    }
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_endpoint(&settings.tracing.endpoint)
        .build()?;
    let resource = Resource::builder()
        .with_service_name("signal-gateway")
        .with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ))
        .with_attribute(opentelemetry::KeyValue::new(
            "service.instance.id",
            instance.to_owned(),
        ))
        .build();
    // A trace that started in another process keeps its sampling decision.
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
        f64::from(settings.tracing.samples_per_million) / 1e6,
    )));
    Ok(Some(
        SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(sampler)
            .with_resource(resource)
            .build(),
    ))
}

impl Telemetry {
    /// Changes the log filter; one that does not parse changes nothing.
    pub fn set_filter(&self, filter: &str) {
        match parse(filter, self.provider.is_some()) {
            Ok(filter) => {
                let _ = self.filter.reload(filter);
            }
            Err(error) => {
                tracing::warn!(%error, "the log filter does not parse; the current one stays")
            }
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(provider) = &self.provider {
            let _ = provider.shutdown();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strict_log_filter_drops_no_traces() {
        for (traced, want) in [(true, true), (false, false)] {
            tracing::subscriber::with_default(
                tracing_subscriber::registry().with(parse("signal_gateway=warn", traced).unwrap()),
                || {
                    assert_eq!(
                        !tracing::info_span!(target: SPANS, "a span").is_disabled(),
                        want
                    );
                    assert!(tracing::info_span!("other").is_disabled());
                },
            );
        }
        assert!(parse("signal_gateway=loud", true).is_err());
        tracing::subscriber::with_default(
            tracing_subscriber::registry().with(parse("debug", false).unwrap()),
            || {
                assert!(
                    tracing::info_span!(target: SPANS, "a span").is_disabled()
                        && !tracing::info_span!("other").is_disabled()
                );
            },
        );
    }
}
