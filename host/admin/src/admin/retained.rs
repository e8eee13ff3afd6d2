//! The histories and the members of channels, for operators.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;

use super::error::ApiError;
use super::pubsub::pairs;
use super::view::{
    EvictedView, HistoriesView, MemberView, MembersView, Name, PurgedView, RoomView, RoomsView,
    StreamView,
};
use super::{Admin, blocking};
use switchyard_types::ids::ConnectionId;
use switchyard_types::presence::PresenceOptions;

/// How many channels or members one page has at most, and by default.
const PAGE_MAX: usize = 1_000;
const PAGE: usize = 100;

/// The parameters of a request.
#[derive(Default)]
struct Wanted {
    channel: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
    limit: Option<usize>,
}

impl Wanted {
    fn read(query: Option<String>, keys: &[&str]) -> Result<Wanted, ApiError> {
        let mut wanted = Wanted::default();
        for (key, value) in pairs(&query.unwrap_or_default()) {
            match key {
                "channel" if keys.contains(&key) => wanted.channel = Some(value),
                "after" if keys.contains(&key) => wanted.after = Some(value),
                "limit" if keys.contains(&key) => {
                    let limit = std::str::from_utf8(&value).ok().and_then(|it| it.parse().ok());
                    let limit = limit.filter(|limit| (1..=PAGE_MAX).contains(limit));
                    let words = || format!("limit must be from 1 to {PAGE_MAX}");
                    wanted.limit = Some(limit.ok_or_else(|| ApiError::bad_request(words()))?);
                }
                _ => {
                    let words = format!("\"{key}\" is none of {}", keys.join(", "));
                    return Err(ApiError::bad_request(words));
                }
            }
        }
        Ok(wanted)
    }

    fn limit(&self) -> usize {
        self.limit.unwrap_or(PAGE)
    }

    fn channel(self) -> Result<Vec<u8>, ApiError> {
        self.channel.ok_or_else(|| ApiError::bad_request("channel must be given"))
    }
}

/// `GET /v1/history`
pub async fn histories(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<HistoriesView>, ApiError> {
    let wanted = Wanted::read(query, &["after", "limit"])?;
    blocking(move || {
        let history = admin.services.hub.history();
        let totals = history.totals();
        let page = history.list(wanted.after.as_deref(), wanted.limit());
        let stream = |stream: &switchyard_history::Listed| StreamView {
            channel: Name::new(&stream.channel),
            messages: stream.messages,
            bytes: stream.bytes,
            listeners: stream.listeners,
            position: stream.position.to_string(),
        };
        Ok(Json(HistoriesView {
            in_backplane: history.is_shared(),
            channels: totals.streams,
            messages: totals.messages,
            bytes: totals.counted_bytes,
            evicted: EvictedView {
                idle: totals.evictions.idle_streams,
                streams: totals.evictions.streams,
                messages: totals.evictions.oldest_messages,
            },
            page: page.streams.iter().map(stream).collect(),
            next: page.next.map(|next| Name::new(&next)),
        }))
    })
    .await
}

/// `DELETE /v1/history`
pub async fn purge(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<PurgedView>, ApiError> {
    let channel = Wanted::read(query, &["channel"])?.channel()?;
    let history = admin.services.hub.history();
    if history.rule(&channel).is_none() {
        let words = "the channel has no history: no rule of the server gives it one";
        return Err(ApiError::new(StatusCode::CONFLICT, "no-history", words));
    }
    let purged = match (&admin.services.backplane, history.is_shared()) {
        (Some(backplane), true) => backplane.purge(&channel).await.map_err(|refusal| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", refusal.message)
        })?,
        _ => history.purge(&channel),
    };
    Ok(Json(PurgedView { purged }))
}

/// `GET /v1/presence`
pub async fn rooms(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<RoomsView>, ApiError> {
    let wanted = Wanted::read(query, &["after", "limit"])?;
    blocking(move || {
        let presence = admin.services.hub.presence();
        let totals = presence.totals();
        let mut page = presence.list(wanted.after.as_deref(), wanted.limit() + 1);
        let has_more = page.len() > wanted.limit();
        page.truncate(wanted.limit());
        let next = page.last().filter(|_| has_more).map(|room| Name::new(&room.channel));
        let room = |room: &switchyard_presence::RoomEntry| RoomView {
            channel: Name::new(&room.channel),
            members: room.count.members,
            users: room.count.users,
            watchers: room.watchers,
        };
        Ok(Json(RoomsView {
            channels: totals.rooms,
            members: totals.members,
            watchers: totals.watchers,
            bytes: totals.bytes,
            page: page.iter().map(room).collect(),
            next,
        }))
    })
    .await
}

/// `GET /v1/presence/members`
pub async fn members(
    State(admin): State<Admin>,
    RawQuery(query): RawQuery,
) -> Result<Json<MembersView>, ApiError> {
    let wanted = Wanted::read(query, &["channel", "after", "limit"])?;
    let limit = wanted.limit() as u64;
    let after = match &wanted.after {
        None => None,
        Some(after) => {
            let id = std::str::from_utf8(after).ok().and_then(|id| id.parse::<ConnectionId>().ok());
            let words = "after must be the number of a connection";
            Some(id.ok_or_else(|| ApiError::bad_request(words))?)
        }
    };
    let channel = wanted.channel()?;
    let options = PresenceOptions { after, limit: Some(limit), is_count: false };
    let mut view = None;
    let looked = admin.services.hub.presence().look(&channel, options, |page| {
        let members = page.members.unwrap_or_default().iter().map(|member| MemberView {
            connection: member.connection,
            user: member.user.map(str::to_owned),
            data: serde_json::from_str(member.data).unwrap_or_default(),
        });
        view = Some(MembersView {
            count: page.count,
            users: page.users,
            members: members.collect(),
            next: page.next,
        });
    });
    let no_presence = |words: String| ApiError::new(StatusCode::CONFLICT, "no-presence", words);
    looked.map_err(|refusal| no_presence(refusal.message.into()))?;
    view.map(Json).ok_or_else(ApiError::internal)
}
