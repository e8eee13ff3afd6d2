//! What rules decide about, whatever the action: to receive something of a channel is to subscribe
//! to it, and to send something is to publish.

/// What an action of the contract comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionKind {
    /// Receive something of the channel, or look at it.
    Receive,
    /// Receive what is published on all channels that match the pattern.
    ReceivePattern,
    /// Send so many bytes to the channel or method.
    Send(u32),
    /// Look at what does not belong to a channel, such as the server's state.
    InspectServer,
}

/// The kind of an action. Takes the generated module `access` and a reference to its `Action`: this
/// crate does not depend on the contract.
///
/// ```ignore
/// let kind = plugin_kit::action_kind!(access, &request.action);
/// ```
#[macro_export]
macro_rules! action_kind {
    ($access:ident, $action:expr) => {
        match $action {
            $access::Action::Subscribe
            | $access::Action::Resume
            | $access::Action::History
            | $access::Action::Presence
            | $access::Action::Watch
            | $access::Action::Inspect($access::Inspection::Channel) => {
                $crate::actions::ActionKind::Receive
            }
            $access::Action::Psubscribe => $crate::actions::ActionKind::ReceivePattern,
            $access::Action::Publish(bytes)
            | $access::Action::Enter(bytes)
            | $access::Action::Call(bytes) => $crate::actions::ActionKind::Send(*bytes),
            $access::Action::Inspect(
                $access::Inspection::Patterns
                | $access::Inspection::Server
                | $access::Inspection::Clients
                | $access::Inspection::Configuration,
            ) => $crate::actions::ActionKind::InspectServer,
        }
    };
}
