//! The members of a channel, as nodes send them to each other.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use switchyard_presence::{Member, RemoteMember, RemotePage};
use switchyard_types::ids::ConnectionId;

/// A member, as nodes send it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomMember {
    connection: ConnectionId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    data: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_in_grace: bool,
}

/// A part of the members on a node, as nodes send it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomMembers {
    stamp: u64,
    as_of: u64,
    members: Vec<RoomMember>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<ConnectionId>,
}

impl From<RemotePage> for RoomMembers {
    fn from(page: RemotePage) -> RoomMembers {
        let RemotePage { stamp, as_of, members, next } = page;
        let members = members
            .into_iter()
            .map(|RemoteMember { member, is_in_grace }| wire(&member, is_in_grace))
            .collect();
        RoomMembers { stamp, as_of, members, next }
    }
}

impl From<RoomMembers> for RemotePage {
    fn from(page: RoomMembers) -> RemotePage {
        let RoomMembers { stamp, as_of, members, next } = page;
        let members = members
            .into_iter()
            .map(|it| RemoteMember { is_in_grace: it.is_in_grace, member: it.into() })
            .collect();
        RemotePage { stamp, as_of, members, next }
    }
}

/// A member, as it is sent.
pub fn wire(member: &Member, is_in_grace: bool) -> RoomMember {
    let Member { connection, user, data } = member;
    let user = user.as_deref().map(str::to_owned);
    RoomMember { connection: *connection, user, data: data.to_string(), is_in_grace }
}

impl From<RoomMember> for Member {
    fn from(it: RoomMember) -> Member {
        let user = it.user.as_deref().map(Arc::from);
        Member { connection: it.connection, user, data: it.data.into() }
    }
}
