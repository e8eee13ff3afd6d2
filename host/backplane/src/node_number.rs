//! The number with which the connection ids of this node begin.
//!
//! It is random. Each time the node is connected to the backplane it asks the others for theirs, and
//! takes another one while one of them has the same. Connections that exist keep their ids.

use std::sync::Arc;

use tracing::info;

use super::Backplane;
use super::ask::{Answer, NodeAnswer, Question};
use switchyard_hub::Hub;

impl Backplane {
    /// Claims the number of this node. Ends when no node that answers within
    /// `cluster.ask_timeout_ms` has the same.
    pub(super) async fn claim_node_number(&self, hub: &Arc<Hub>) {
        loop {
            let ids = hub.connections().ids();
            let number = ids.node();
            let answers = self.ask_all(hub, Question::NodeNumber(number)).await;
            for other in answers.iter().filter(|other| other.node != self.node) {
                hub.presence().record_contact(&other.node, None);
            }
            let has_same = |other: &&NodeAnswer| {
                other.node != self.node && other.answer == Answer::NodeNumber(number)
            };
            let Some(other) = answers.iter().find(has_same) else { return };
            ids.leave_node_number();
            info!(node = other.node, "another node has the same number: new ids have another one");
        }
    }
}
