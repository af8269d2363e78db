//! A SignalCluster that this release cannot read says so in its own conditions, and nothing else of it is touched. Holds a client.

use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Resource as _};
use serde_json::json;
use signal_crds::SignalCluster;

use crate::act::writer::{WriteError, Writer};
use crate::observe::definition::UnreadableCluster;
use crate::reconcile::context::Context;
use crate::status::unreadable_conditions;
use crate::time::now;

/// Writes the conditions, if they are not as they should be. What is lost is written again when the object changes, or by the next leader.
pub(crate) async fn report_unreadable(context: &Context, unreadable: &UnreadableCluster) {
    let metadata = &unreadable.metadata;
    tracing::warn!(
        namespace = metadata.namespace,
        name = metadata.name,
        error = unreadable.why,
        "SignalCluster cannot be read; leaving everything of it as it is"
    );
    if let Err(error) = write(context, unreadable).await {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            namespace = metadata.namespace,
            name = metadata.name,
            "conditions of a SignalCluster that cannot be read not written"
        );
    }
}

async fn write(context: &Context, unreadable: &UnreadableCluster) -> Result<(), WriteError> {
    let conditions = unreadable_conditions(unreadable, now());
    if conditions == unreadable.conditions {
        return Ok(());
    }
    let metadata = &unreadable.metadata;
    let name = metadata.name.as_deref().unwrap_or_default();
    let kind = ApiResource::erase::<SignalCluster>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(
        context.writer.client().clone(),
        metadata.namespace.as_deref().unwrap_or_default(),
        &kind,
    );
    let patch = json!({
        "metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version},
        "status": {"observedGeneration": metadata.generation, "conditions": conditions},
    });
    let params = Writer::patch_params();
    let request = async {
        api.patch_status(name, &params, &kube::api::Patch::Merge(&patch))
            .await
    };
    let kind = SignalCluster::kind(&());
    context.writer.write("status", &kind, name, request).await?;
    Ok(())
}
