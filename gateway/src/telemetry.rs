//! Logs as JSON or text, and traces over OTLP where an endpoint is set.
//!
//! Never tokens, keys, plaintext bodies or personal data; the filter is a live setting.

use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::{self, LogFormat};

/// What the process keeps of its telemetry: drop it last.
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    provider: Option<SdkTracerProvider>,
}

/// Installs the process's subscriber. Call it once, outside any runtime: the exporter has a thread of its own.
///
/// # Errors
/// A filter that does not parse, an exporter that cannot be built, or a second call.
pub fn init(settings: &config::Telemetry, filter: &str, instance: &str) -> anyhow::Result<Telemetry> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(filter)?);
    let lines = match settings.log_format {
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).boxed(),
        LogFormat::Text => fmt::layer().with_target(false).with_ansi(std::io::stderr().is_terminal()).with_writer(std::io::stderr).boxed(),
    };
    let provider = exporter(settings, instance)?;
    let traces = provider.as_ref().map(|p| tracing_opentelemetry::layer().with_tracer(p.tracer("signal-gateway")));
    tracing_subscriber::registry().with(filter).with(lines).with(traces).try_init()?;
    Ok(Telemetry { filter: handle, provider })
}

fn exporter(settings: &config::Telemetry, instance: &str) -> anyhow::Result<Option<SdkTracerProvider>> {
    if settings.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().with_endpoint(&settings.otlp_endpoint).build()?;
    let resource = Resource::builder()
        .with_service_name("signal-gateway")
        .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(opentelemetry::KeyValue::new("service.instance.id", instance.to_owned()))
        .build();
    // A trace that began elsewhere keeps its sampling decision.
    let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.sampling_ratio)));
    Ok(Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_sampler(sampler).with_resource(resource).build()))
}

impl Telemetry {
    /// Changes what is logged; a filter that does not parse changes nothing.
    pub fn set_filter(&self, filter: &str) {
        match EnvFilter::try_new(filter) {
            Ok(filter) => {
                let _ = self.filter.reload(filter);
            }
            Err(error) => tracing::warn!(%error, "the log filter does not parse"),
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
