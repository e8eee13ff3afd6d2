//! How much one request may ask of the server.

/// The limits of the request parser. Each is the largest value that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes of an inline request, of a count or of a length that may arrive
    /// without the end of their line.
    pub inline_bytes_max: usize,
    /// Bytes of one argument (Redis' `proto-max-bulk-len`).
    pub bulk_bytes_max: usize,
    /// Arguments of one request, the command's name included.
    pub arguments_max: usize,
    /// Bytes of one request as it stands on the wire (Redis'
    /// `client-query-buffer-limit`): it is parsed in place, so so much may have
    /// to be held.
    pub request_bytes_max: usize,
    /// `arguments_max` of a connection that must authenticate and has not.
    pub unauthenticated_arguments_max: usize,
    /// `bulk_bytes_max` of a connection that must authenticate and has not.
    pub unauthenticated_bulk_bytes_max: usize,
}

/// Redis' own limits.
impl Default for RequestLimits {
    fn default() -> RequestLimits {
        RequestLimits {
            inline_bytes_max: 64 * 1024,
            bulk_bytes_max: 512 * 1024 * 1024,
            arguments_max: 2_147_483_647,
            request_bytes_max: 1024 * 1024 * 1024,
            unauthenticated_arguments_max: 10,
            unauthenticated_bulk_bytes_max: 16 * 1024,
        }
    }
}

/// Whether the connection still owes its credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    /// Done, or not required.
    Settled,
    /// Required and not done yet: the `unauthenticated_` limits apply, too.
    Owed,
}
