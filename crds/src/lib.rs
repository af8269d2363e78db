//! The Kubernetes resources of Signal.
