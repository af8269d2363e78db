//! Live connections of the whole cluster: listing, describing and closing them, and their rooms.
//!
//! Input: administrators' requests. Output: answers from this instance's [`crate::hub`] and, by request and reply over the [`crate::bus`], from every
//! other instance. The answer names the instances that did not reply.

mod pages;

use std::net::IpAddr;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use self::pages::Listed;
use super::extract::{
    Cursor, Json, Limit, May, Name, NoParams, Params, Permission, RoomName, Segment,
};
use super::problem::{Cause, Problem};
use super::{AUDIT, ApiState, CLIENTS};
use crate::bus::{Answers, Ask, Reply};
use crate::client::{ClientInfo, ClientQuery, ClientSelector};
use crate::id::{AnyId, Id};
use crate::protocol::bounds::MAX_ROOMS_PER_EVENT;
use crate::protocol::close::Close;

/// Most rooms in one request.
pub(super) const MAX_ROOMS: usize = MAX_ROOMS_PER_EVENT;

macro_rules! permissions {
    ($($name:ident: $code:literal, $action:literal;)*) => {$(
        #[doc = $code]
        pub(crate) struct $name;

        impl Permission for $name {
            const CODE: &'static str = concat!("WebSocketClient.", $code);
            const ACTION: &'static str = $action;
        }
    )*};
}

// authorization.md 4.7.
permissions! {
    Find: "find", "read";
    FindById: "findById", "read";
    Send: "send", "execute";
    Broadcast: "broadcast", "execute";
    Join: "join", "update";
    Leave: "leave", "update";
    Disconnect: "disconnect", "delete";
}

/// ClientSelector connections are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListParams {
    /// Only connections of this user.
    #[param(value_type = Name, required = false)]
    user_id: Option<Name>,
    /// Only members of this room.
    #[param(value_type = RoomName, required = false)]
    room: Option<RoomName>,
    /// Only connections of this instance. Where it is the instance that answers, no other one is asked, so this works without Redis.
    #[param(value_type = Name, required = false)]
    instance: Option<Name>,
    /// `next` of the previous page.
    #[param(value_type = String, required = false, pattern = "^(3[0-9]|[46][1-9a-f]|[57][0-9a]){1,12}$")]
    cursor: Option<Cursor<Id>>,
    /// Size of the page.
    #[serde(default)]
    #[param(value_type = u32, minimum = 1, maximum = 100, default = 50, required = false)]
    limit: Limit,
}

/// A live connection.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "1KbZ0dT9Xa4", "userId": "17", "state": "encrypted", "encrypted": true, "rooms": ["ws-default", "ws-notification", "merchant:42"],
    "connectedAt": "2026-11-23T08:00:00.000Z", "lastSeenAt": "2026-11-23T08:04:10.000Z", "address": "203.0.113.9", "instance": "gateway-0"
}))]
pub(crate) struct Client {
    /// Client id.
    id: Id,
    /// The user, once authenticated.
    #[schema(required = true)]
    user_id: Option<String>,
    /// `connecting`, `authenticating`, `authenticated` or `encrypted`.
    state: String,
    /// Whether its messages are encrypted.
    encrypted: bool,
    /// The rooms it is in, without the room of its own id.
    rooms: Vec<String>,
    /// When it connected.
    #[schema(format = DateTime)]
    connected_at: String,
    /// When its last frame arrived.
    #[schema(format = DateTime)]
    last_seen_at: String,
    /// The address it connected from.
    #[schema(value_type = Option<String>, required = true)]
    address: Option<IpAddr>,
    /// The instance that holds it.
    instance: String,
}

impl Client {
    fn on(instance: &str, client: ClientInfo) -> Self {
        let ClientInfo {
            id,
            user_id,
            state,
            encrypted,
            rooms,
            connected_at,
            last_seen_at,
            address,
        } = client;
        Self {
            id,
            user_id,
            state,
            encrypted,
            rooms,
            connected_at,
            last_seen_at,
            address,
            instance: instance.to_owned(),
        }
    }
}

/// A page of connections, in the order of their ids' text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ClientPage {
    /// The connections.
    data: Vec<Client>,
    /// `cursor` of the next page; null at the end.
    #[schema(value_type = Option<String>, required = true, example = "314b625a306454395861")]
    next: Option<Cursor<Id>>,
    /// Live instances that did not answer in time: their connections are not in `data`.
    #[schema(example = json!(["gateway-2"]))]
    missing: Vec<String>,
}

/// Lists live connections of the whole cluster.
///
/// A connection that opens or closes while pages are read may be missing; every connection that stays open is on exactly one page.
#[utoipa::path(get, path = "/socket/websocket/clients", operation_id = "listClients", tag = CLIENTS, params(ListParams),
    responses((status = 200, description = "One page", body = ClientPage)))]
pub(crate) async fn list(
    _: May<Find>,
    State(state): State<ApiState>,
    Params(params): Params<ListParams>,
) -> Result<Json<ClientPage>, Problem> {
    let limit = params.limit.0 as usize;
    let query = ClientQuery {
        user_id: params.user_id.map(|user| user.0),
        room: params.room.map(|room| room.0),
        after: params.cursor.map(|cursor| cursor.0),
        // One more says whether there is a next page.
        limit: limit + 1,
    };
    let only = params.instance.as_ref().map(|only| &*only.0);
    let Listed {
        clients: mut data,
        missing,
    } = pages::read(&state, &query, only).await?;
    let more = data.len() > limit;
    data.truncate(limit);
    let next = data.last().filter(|_| more).map(|last| Cursor(last.id));
    Ok(Json(ClientPage {
        data,
        next,
        missing,
    }))
}

/// Describes one connection, wherever it is.
#[utoipa::path(get, path = "/socket/websocket/clients/{id}", operation_id = "describeClient", tag = CLIENTS, params(("id" = AnyId, Path, description = "Client id")),
    responses((status = 200, description = "The connection", body = Client)))]
pub(crate) async fn describe(
    _: May<FindById>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(id): Segment<AnyId>,
) -> Result<Json<Client>, Problem> {
    let id = given_here(&id)?;
    if let Some(client) = state.hub.describe(id).await {
        return Ok(Json(Client::on(&state.instance, client)));
    }
    let Answers { replies, missing } = state.bus.ask(&Ask::Describe { client: id }).await?;
    let held = replies
        .into_iter()
        .find_map(|(instance, reply)| match reply {
            Reply::Clients { clients } => clients
                .into_iter()
                .find(|client| client.id == id)
                .map(|client| Client::on(&instance, client)),
            _ => None,
        });
    held.map(Json).ok_or_else(|| not_held(missing))
}

/// Returns the id if a gateway may have given it; no instance holds any other client.
pub(super) fn given_here(id: &AnyId) -> Result<Id, Problem> {
    id.ours().ok_or_else(|| not_held(Vec::new()))
}

/// Makes the answer for a client that no instance holds: 404, or 503 while an instance that may hold it has not answered.
pub(super) fn not_held(missing: Vec<String>) -> Problem {
    if missing.is_empty() {
        return Cause::NotFound.because("no instance holds a client with this id");
    }
    Cause::InstancesSilent
        .because("no instance that answered holds this client; nothing was done")
        .with("missing", missing)
        .retry_after(5)
}

/// How many connections were closed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Closed {
    /// On all instances that answered.
    pub(super) closed: usize,
    /// Live instances that did not answer in time: their connections may still be open.
    #[schema(example = json!(["gateway-2"]))]
    pub(super) missing: Vec<String>,
}

pub(super) fn counted(replies: &[(String, Reply)]) -> usize {
    replies
        .iter()
        .map(|(_, reply)| {
            if let Reply::Count { count } = reply {
                *count
            } else {
                0
            }
        })
        .sum()
}

/// Closes one connection, wherever it is, with 4007.
#[utoipa::path(delete, path = "/socket/websocket/clients/{id}", operation_id = "disconnectClient", tag = CLIENTS, params(("id" = AnyId, Path, description = "Client id")),
    responses((status = 200, description = "The connection is closed", body = Closed)))]
pub(crate) async fn disconnect(
    by: May<Disconnect>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(id): Segment<AnyId>,
) -> Result<Json<Closed>, Problem> {
    let id = given_here(&id)?;
    let mut closed = state
        .hub
        .close(&ClientSelector::Client(id), Close::Disconnected)
        .await;
    if closed == 0 {
        let Answers { replies, missing } = state
            .bus
            .ask(&Ask::Close {
                client: Some(id),
                user: None,
            })
            .await?;
        closed = counted(&replies);
        if closed == 0 {
            return Err(not_held(missing));
        }
    }
    tracing::info!(target: AUDIT, by = %by.subject, client.id = %id, "client disconnected");
    Ok(Json(Closed {
        closed,
        missing: Vec::new(),
    }))
}

/// Closes every connection of a user, on all instances, with 4007.
///
/// The user may connect again at once; to prevent that, revoke the user's tokens. A user without connections is not an error.
#[utoipa::path(delete, path = "/socket/websocket/users/{id}/clients", operation_id = "disconnectUser", tag = CLIENTS, params(("id" = Name, Path, description = "User id")),
    responses((status = 200, description = "The connections are closed", body = Closed)))]
pub(crate) async fn disconnect_user(
    by: May<Disconnect>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(Name(user)): Segment<Name>,
) -> Result<Json<Closed>, Problem> {
    let selector = ClientSelector::User(user.clone());
    let ask = Ask::Close {
        client: None,
        user: Some(user.clone()),
    };
    let (here, elsewhere) = tokio::join!(
        state.hub.close(&selector, Close::Disconnected),
        state.bus.ask(&ask)
    );
    let Answers { replies, missing } = elsewhere.map_err(|error| {
        tracing::warn!(%error, "the clients of a user were closed on this instance only: the others could not be asked");
        tracing::info!(target: AUDIT, by = %by.subject, user.id = %user, closed = here, "clients of a user disconnected on this instance only");
        Cause::BusUnavailable.because("closed on this instance only; repeat for the others").with("closed", here).retry_after(5)
    })?;
    let closed = here + counted(&replies);
    tracing::info!(target: AUDIT, by = %by.subject, user.id = %user, closed, "clients of a user disconnected");
    Ok(Json(Closed { closed, missing }))
}

/// Rooms to join or leave.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"rooms": ["merchant:42"]}))]
pub(crate) struct RoomsBody {
    /// Their names.
    #[schema(min_items = 1, max_items = 1024)]
    rooms: Vec<RoomName>,
}

impl RoomsBody {
    fn names(self) -> Result<Vec<String>, Problem> {
        if self.rooms.is_empty() || self.rooms.len() > MAX_ROOMS {
            return Err(Cause::InvalidBody.because(format!("rooms must name 1 to {MAX_ROOMS}")));
        }
        let mut names: Vec<String> = self.rooms.into_iter().map(|room| room.0).collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// ClientSelector rooms changed.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RoomsChanged {
    /// The rooms that changed: those that the client newly joined, or left.
    rooms: Vec<String>,
    /// The instance that holds the client.
    instance: String,
}

/// Puts a connection into rooms, whatever the room rules say.
///
/// The rules still apply to the client's own requests. They do not take it out of these rooms.
#[utoipa::path(post, path = "/socket/websocket/clients/{id}/rooms", operation_id = "joinRooms", tag = CLIENTS, params(("id" = AnyId, Path, description = "Client id")),
    request_body = RoomsBody, responses((status = 200, description = "The rooms that it newly joined", body = RoomsChanged)))]
pub(crate) async fn join(
    by: May<Join>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(id): Segment<AnyId>,
    Json(body): Json<RoomsBody>,
) -> Result<Json<RoomsChanged>, Problem> {
    let (id, rooms) = (given_here(&id)?, body.names()?);
    let here = state.hub.join(id, &rooms).await;
    let changed = changed(&state, here, Ask::Join { client: id, rooms }).await?;
    tracing::info!(target: AUDIT, by = %by.subject, client.id = %id, rooms = changed.rooms.len(), "client put into rooms");
    Ok(Json(changed))
}

/// Takes a connection out of rooms.
#[utoipa::path(delete, path = "/socket/websocket/clients/{id}/rooms", operation_id = "leaveRooms", tag = CLIENTS, params(("id" = AnyId, Path, description = "Client id")),
    request_body = RoomsBody, responses((status = 200, description = "The rooms that it left", body = RoomsChanged)))]
pub(crate) async fn leave(
    by: May<Leave>,
    State(state): State<ApiState>,
    _: Params<NoParams>,
    Segment(id): Segment<AnyId>,
    Json(body): Json<RoomsBody>,
) -> Result<Json<RoomsChanged>, Problem> {
    let (id, rooms) = (given_here(&id)?, body.names()?);
    let here = state.hub.leave(id, &rooms).await;
    let changed = changed(&state, here, Ask::Leave { client: id, rooms }).await?;
    tracing::info!(target: AUDIT, by = %by.subject, client.id = %id, rooms = changed.rooms.len(), "client taken out of rooms");
    Ok(Json(changed))
}

async fn changed(
    state: &ApiState,
    here: Option<Vec<String>>,
    ask: Ask,
) -> Result<RoomsChanged, Problem> {
    if let Some(rooms) = here {
        return Ok(RoomsChanged {
            rooms,
            instance: state.instance.to_string(),
        });
    }
    let Answers { replies, missing } = state.bus.ask(&ask).await?;
    let held = replies
        .into_iter()
        .find_map(|(instance, reply)| match reply {
            Reply::Rooms { rooms: Some(rooms) } => Some(RoomsChanged { rooms, instance }),
            _ => None,
        });
    held.ok_or_else(|| not_held(missing))
}
