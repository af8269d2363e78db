//! The caller's inbox: lists, counts, marking as read, deleting.
//!
//! Input: requests whose subject comes from a verified token, never from a parameter. Output: rows of [`crate::store`]; changes
//! go through [`crate::inbox`], which pushes them to the caller's devices.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::openapi::schema::{
    ArrayBuilder, KnownFormat, Object, ObjectBuilder, Schema, SchemaFormat, Type,
};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::extract::{Cursor, Json, Limit, Name, NoParams, Owner, Params, Segment};
use super::openapi::one_of;
use super::problem::{Cause, Problem};
use super::{ApiState, NOTIFICATIONS};
use crate::id::AnyId;
use crate::inbox::{self, NotificationSelector};
use crate::notification::{Epoch, InboxState, Notification};
use crate::protocol::event;
use crate::protocol::whole::Whole;
use crate::store::Filter;

/// Most ids in one request.
const MAX_IDS: usize = crate::protocol::bounds::MAX_READ_IDS;

/// Which notifications are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// Only unread, or only read notifications.
    #[param(inline)]
    status: Option<Status>,
    /// Only notifications of exactly this type.
    #[serde(rename = "type")]
    #[param(value_type = Name, required = false)]
    kind: Option<Name>,
    /// `next` of the previous page.
    #[param(value_type = String, required = false, pattern = "^[0-7][0-9a-f]{15}$")]
    cursor: Option<Cursor<i64>>,
    /// Size of the page.
    #[serde(default)]
    #[param(value_type = u32, minimum = 1, maximum = 100, default = 50, required = false)]
    limit: Limit,
}

/// Whether a notification was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    /// Not read yet.
    Unread,
    /// Read.
    Read,
}

/// A page of an inbox, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NotificationPage {
    /// The notifications, by descending `seq`.
    data: Vec<Notification>,
    /// `cursor` of the next page; null at the end.
    #[schema(value_type = Option<String>, required = true, example = "000000000000032c")]
    next: Option<Cursor<i64>>,
    /// Which history of the inbox this is.
    epoch: Epoch,
    /// The counters of the whole inbox at the time of this page.
    #[serde(flatten)]
    inbox: InboxState,
}

/// Lists the caller's notifications, newest first.
#[utoipa::path(get, path = "/notifications", operation_id = "listNotifications", tag = NOTIFICATIONS, params(ListParams),
    responses((status = 200, description = "One page", body = NotificationPage)))]
pub(crate) async fn list(
    Owner(subject): Owner,
    State(state): State<ApiState>,
    Params(params): Params<ListParams>,
) -> Result<Json<NotificationPage>, Problem> {
    let filter = Filter {
        is_read: params.status.map(|status| status == Status::Read),
        kind: params.kind.map(|kind| kind.0),
    };
    let before = params.cursor.map(|cursor| cursor.0);
    let page = state
        .notifications
        .list(&subject, &filter, before, params.limit.0)
        .await?;
    Ok(Json(NotificationPage {
        data: page.rows,
        next: page.next.map(Cursor),
        epoch: page.counts.epoch,
        inbox: page.counts.inbox,
    }))
}

/// How many notifications are unread.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UnreadCount {
    /// In the whole inbox.
    unread_count: i64,
    /// Which history of the inbox this is.
    epoch: Epoch,
}

/// Counts the caller's unread notifications.
#[utoipa::path(get, path = "/notifications/unread-count", operation_id = "countUnread", tag = NOTIFICATIONS,
    responses((status = 200, description = "The count", body = UnreadCount)))]
pub(crate) async fn unread_count(
    Owner(subject): Owner,
    State(state): State<ApiState>,
    _: Params<NoParams>,
) -> Result<Json<UnreadCount>, Problem> {
    let counts = state.notifications.inbox(&subject).await?;
    Ok(Json(UnreadCount {
        unread_count: counts.inbox.unread_count,
        epoch: counts.epoch,
    }))
}

/// A notification of another user is answered like one that does not exist.
fn no_such() -> Problem {
    Cause::NotFound.because("you have no notification with this id")
}

/// Shows one of the caller's notifications.
#[utoipa::path(get, path = "/notifications/{id}", operation_id = "getNotification", tag = NOTIFICATIONS, params(("id" = AnyId, Path, description = "Notification id")),
    responses((status = 200, description = "The notification", body = Notification)))]
pub(crate) async fn get(
    Owner(subject): Owner,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(id): Segment<AnyId>,
) -> Result<Json<Notification>, Problem> {
    let id = id.ours().ok_or_else(no_such)?;
    state
        .notifications
        .get(&subject, id)
        .await?
        .map(Json)
        .ok_or_else(no_such)
}

/// The schema of a member that has one value.
fn only_true(description: &str) -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .enum_values(Some([true]))
        .description(Some(description))
        .build()
}

fn is_read() -> Object {
    only_true("Always true: a read notification stays read.")
}

/// A change of a notification.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = NotificationPatch, example = json!({"isRead": true}))]
pub(crate) struct Patch {
    /// Always true: a read notification stays read.
    #[schema(schema_with = is_read)]
    is_read: bool,
}

/// Marks one of the caller's notifications as read.
///
/// Sets `readAt` once; repeated calls change nothing. Every device of the caller receives `notification:read`.
#[utoipa::path(patch, path = "/notifications/{id}", operation_id = "readNotification", tag = NOTIFICATIONS, params(("id" = AnyId, Path, description = "Notification id")),
    request_body = Patch, responses((status = 200, description = "The notification", body = Notification)))]
pub(crate) async fn patch(
    Owner(subject): Owner,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(id): Segment<AnyId>,
    Json(patch): Json<Patch>,
) -> Result<Json<Notification>, Problem> {
    if !patch.is_read {
        return Err(Cause::InvalidBody.because("`isRead` must be true: what was read stays read"));
    }
    let id = id.ours().ok_or_else(no_such)?;
    state
        .inbox
        .mark_read(&subject, &NotificationSelector::Ids(vec![id]))
        .await?;
    state
        .notifications
        .get(&subject, id)
        .await?
        .map(Json)
        .ok_or_else(no_such)
}

/// Which notifications become read: exactly one of these members; the others may be null.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct MarkRead {
    ids: Option<Vec<AnyId>>,
    up_to: Option<Whole>,
    all: Option<bool>,
}

impl PartialSchema for MarkRead {
    fn schema() -> RefOr<Schema> {
        let ids = ArrayBuilder::new()
            .items(Ref::from_schema_name("AnyId"))
            .min_items(Some(1))
            .max_items(Some(MAX_IDS))
            .description(Some(
                "The notifications with these ids; ids of other users' notifications are ignored.",
            ));
        let up_to = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(0))
            .maximum(Some(isize::MAX))
            .description(Some("All notifications with this `seq` or a lower one."));
        let all = only_true("All notifications.");
        one_of(
            "Which notifications become read: exactly one of these members; the others may be null.",
            [
                ("ids", ids.into()),
                ("upTo", up_to.into()),
                ("all", Schema::Object(all).into()),
            ],
            &[],
            serde_json::json!({"upTo": 812}),
        )
    }
}

impl ToSchema for MarkRead {}

impl MarkRead {
    fn selector(self) -> Result<NotificationSelector, Problem> {
        match (self.ids, self.up_to, self.all) {
            (Some(ids), None, None) if (1..=MAX_IDS).contains(&ids.len()) => Ok(
                NotificationSelector::Ids(ids.iter().filter_map(AnyId::ours).collect()),
            ),
            (Some(_), None, None) => {
                Err(Cause::InvalidBody.because(format!("`ids` must name 1 to {MAX_IDS}")))
            }
            (None, Some(Whole(seq)), None) if seq >= 0 => Ok(NotificationSelector::UpTo(seq)),
            (None, Some(_), None) => Err(Cause::InvalidBody.because("`upTo` must not be negative")),
            (None, None, Some(true)) => Ok(NotificationSelector::All),
            (None, None, Some(false)) => Err(Cause::InvalidBody.because("`all` must be true")),
            _ => Err(Cause::InvalidBody.because("want exactly one of `ids`, `upTo` and `all`")),
        }
    }
}

/// Marks several of the caller's notifications as read.
///
/// `ids` of the answer holds the notifications that were unread before, the newest 1000 of `total`. It is empty when the call is repeated. Every device of the caller receives `notification:read`.
#[utoipa::path(post, path = "/notifications/read", operation_id = "readNotifications", tag = NOTIFICATIONS, request_body = MarkRead,
    responses((status = 200, description = "What became read", body = event::ReadByUser<'_>)))]
pub(crate) async fn mark_read(
    Owner(subject): Owner,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Json(body): Json<MarkRead>,
) -> Result<Response, Problem> {
    let selector = body.selector()?;
    let read = state.inbox.mark_read(&subject, &selector).await?;
    Ok(Json(inbox::read_data(&read)).into_response())
}

/// Deletes one of the caller's notifications permanently.
///
/// Every device of the caller receives `notification:deleted`.
#[utoipa::path(delete, path = "/notifications/{id}", operation_id = "deleteNotification", tag = NOTIFICATIONS, params(("id" = AnyId, Path, description = "Notification id")),
    responses((status = 204, description = "The notification is deleted")))]
pub(crate) async fn delete(
    Owner(subject): Owner,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(id): Segment<AnyId>,
) -> Result<StatusCode, Problem> {
    let id = id.ours().ok_or_else(no_such)?;
    let deleted = state.inbox.delete(&subject, id).await?;
    deleted.ok_or_else(no_such)?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(json: &str) -> Option<NotificationSelector> {
        serde_json::from_str::<MarkRead>(json).ok()?.selector().ok()
    }

    #[test]
    fn exactly_one_way_of_naming_what_was_read() {
        assert_eq!(
            selector(r#"{"upTo": 7}"#),
            Some(NotificationSelector::UpTo(7))
        );
        assert_eq!(
            selector(r#"{"upTo": 7.0}"#),
            Some(NotificationSelector::UpTo(7))
        );
        assert_eq!(
            selector(r#"{"all": true}"#),
            Some(NotificationSelector::All)
        );
        assert_eq!(
            selector(r#"{"ids": ["a"]}"#),
            Some(NotificationSelector::Ids(vec!["a".parse().unwrap()]))
        );
        assert_eq!(
            selector(r#"{"ids": ["7f0e2a52-6c1b-4c0e-9c5e-0d1f2a3b4c5d"]}"#),
            Some(NotificationSelector::Ids(Vec::new())),
            "an id of another server names nothing here"
        );
        for bad in [
            "{}",
            r#"{"ids": []}"#,
            r#"{"upTo": -1}"#,
            r#"{"upTo": 7.5}"#,
            r#"{"upTo": 1e30}"#,
            r#"{"all": false}"#,
            r#"{"all": true, "upTo": 7}"#,
            r#"{"ids": ["a b"]}"#,
        ] {
            assert_eq!(selector(bad), None, "{bad}");
        }
    }
}
