//! The limits of one request.

/// The limits of the request parser. Each is the largest permitted value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestLimits {
    /// Bytes of an inline request, of a count or of a length that may arrive without the end of
    /// their line.
    pub inline_bytes_max: usize,
    /// Bytes of one argument (Redis' `proto-max-bulk-len`).
    pub bulk_bytes_max: usize,
    /// Arguments of one request, the command's name included.
    pub arguments_max: usize,
    /// Bytes of one request on the wire (Redis' `client-query-buffer-limit`): it is parsed in
    /// place, so this much may have to be held.
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

/// Whether the connection must still authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authentication {
    /// Done, or not required.
    Settled,
    /// Required and not done yet: the `unauthenticated_` limits apply, too.
    Owed,
}
