//! Counts requests to the API server as they are sent, by verb and resource: a layer around the client.

use std::task::{Context, Poll};

use http::{Method, Request};
use tower::{Layer, Service};

use crate::metrics::{ApiRequest, Metrics};

/// Counts what goes through it in `signal_operator_api_requests_total`.
#[derive(Debug, Clone)]
pub struct CountRequests(pub Metrics);

impl<S> Layer<S> for CountRequests {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting {
            inner,
            metrics: self.0.clone(),
        }
    }
}

/// A client whose requests are counted.
#[derive(Debug, Clone)]
pub struct Counting<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, B> Service<Request<B>> for Counting<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Request<B>) -> S::Future {
        let uri = request.uri();
        let label = label(
            request.method(),
            uri.path(),
            uri.query().unwrap_or_default(),
        );
        self.metrics.api_requests.get_or_create(&label).inc();
        self.inner.call(request)
    }
}

/// Verb and resource as the API server's rights name them. A name of an object is in neither.
fn label(method: &Method, path: &str, query: &str) -> ApiRequest {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let versions = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => 0,
    };
    let mut rest = parts.skip(versions).peekable();
    if rest.peek() == Some(&"namespaces") {
        rest.next();
        rest.next();
    }
    let (kind, name, subresource) = (rest.next(), rest.next(), rest.next());
    let resource = match (kind, subresource) {
        _ if versions == 0 => "other".to_owned(),
        (None, _) => "discovery".to_owned(),
        (Some(kind), None) => kind.to_owned(),
        (Some(kind), Some(subresource)) => format!("{kind}/{subresource}"),
    };
    let watches = query.split('&').any(|pair| pair == "watch=true");
    let verb = match *method {
        Method::GET if watches => "watch",
        Method::GET if kind.is_some() && name.is_none() => "list",
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    ApiRequest { verb, resource }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_by_verb_and_resource_and_never_by_a_name() {
        for (method, target, verb, resource) in [
            (
                Method::GET,
                "/api/v1/namespaces/a/pods?labelSelector=x",
                "list",
                "pods",
            ),
            (
                Method::GET,
                "/api/v1/pods?watch=true&timeoutSeconds=290",
                "watch",
                "pods",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/secrets/database",
                "get",
                "secrets",
            ),
            (
                Method::GET,
                "/apis/networking.k8s.io/v1",
                "get",
                "discovery",
            ),
            (
                Method::PATCH,
                "/apis/signal.dev/v1alpha1/namespaces/a/signalclusters/edge/status?",
                "patch",
                "signalclusters/status",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/edge?fieldManager=x",
                "patch",
                "deployments",
            ),
            (
                Method::POST,
                "/apis/events.k8s.io/v1/namespaces/a/events",
                "create",
                "events",
            ),
            (
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/a/leases/signal-operator",
                "update",
                "leases",
            ),
            (
                Method::DELETE,
                "/apis/batch/v1/namespaces/a/jobs/edge-migrate-1",
                "delete",
                "jobs",
            ),
            (Method::GET, "/version", "get", "other"),
        ] {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            let found = label(&method, path, query);
            assert_eq!(
                (found.verb, found.resource.as_str()),
                (verb, resource),
                "{target}"
            );
        }
    }
}
